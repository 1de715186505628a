"""The collector's commands. Light to import: each one imports what it needs when it runs.

A command that cannot do its work prints one sentence to standard error and exits with 1.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from learnmech.collector.service.settings import (
    DEFAULT_DB,
    DEFAULT_HOST,
    DEFAULT_PORT,
    Settings,
    SettingsError,
    find_token,
)

if TYPE_CHECKING:
    from learnmech.collector.store import Store

Database = Annotated[
    str,
    typer.Option("--db", envvar="LEARNMECH_DB", help="Database URL: sqlite:///FILE or postgresql://USER@HOST/NAME."),
]


def collect(
    database: Database = DEFAULT_DB,
    host: Annotated[
        str, typer.Option(envvar="LEARNMECH_HOST", help="Address to listen on; any but loopback needs a token.")
    ] = DEFAULT_HOST,
    port: Annotated[
        int, typer.Option(envvar="LEARNMECH_PORT", help="Port to listen on; 0 takes a free one.", min=0, max=65535)
    ] = DEFAULT_PORT,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with the bearer token that requests must carry (or set LEARNMECH_TOKEN[_FILE])."),
    ] = None,
    ingest: Annotated[
        Path | None, typer.Option(help="Store and judge what a spool folder holds, and exit without serving.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Check database, schema, token and port, and exit.")] = False,
    ready_file: Annotated[
        Path | None, typer.Option(help="Once requests are answered, write url, port and pid into this file as JSON.")
    ] = None,
) -> None:
    """Take measurements over HTTP, store and judge them, and serve the live page."""
    _log_to_stderr()
    with _one_sentence():
        from learnmech.collector.service import running

        if ingest is not None:
            running.check_spool(ingest)  # first: a mistyped folder should not leave an empty database behind
            with _store(database, create=True) as store:
                running.ingest(store, ingest)
            return
        settings = Settings(host=host, port=port, token=find_token(token_file, os.environ))
        with _store(database, create=not check) as store:
            if check:
                running.check(store, settings, database)
            else:
                running.serve(store, settings, database, ready_file)


def judge(
    database: Database = DEFAULT_DB,
    run: Annotated[str, typer.Option(help="Name or id of the run, or the beginning of its id.")] = "",
    every: Annotated[bool, typer.Option("--all", help="Judge every run.")] = False,
    law: Annotated[str, typer.Option(help="Only this law (`learnmech laws` lists them).")] = "",
) -> None:
    """Judge stored measurements again from their first step: after a law changed, or years later."""
    _log_to_stderr()
    if bool(run) == every:
        raise typer.BadParameter("expected one of: --run NAME, --all")
    with _one_sentence(), _store(database, create=False) as store:
        from learnmech.collector.service import listing

        listing.judge(store, None if every else run, law)


def runs(
    database: Database = DEFAULT_DB,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the stored runs."""
    with _one_sentence(), _store(database, create=False) as store:
        from learnmech.collector.service import listing

        listing.show_runs(store, as_json=as_json)


db = typer.Typer(help="The database behind the collector.", no_args_is_help=True)


@db.command("upgrade")
def upgrade(database: Database = DEFAULT_DB) -> None:
    """Bring the database to this version's schema; make the tables in an empty one. Back it up first."""
    _log_to_stderr()
    with _one_sentence():
        from learnmech.collector.service import migrating

        migrating.upgrade(database)


@db.command("check")
def check(database: Database = DEFAULT_DB) -> None:
    """Say whether the database is ours, reachable and of this version; change nothing."""
    with _one_sentence(), _store(database, create=False) as store:
        from learnmech.collector.service import migrating

        migrating.check(store)


@contextmanager
def _store(database: str, *, create: bool) -> Iterator["Store"]:
    from learnmech.collector.store import Store

    store = Store.open(database, create=create)
    try:
        yield store
    finally:
        store.close()


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Turn what a person can put right into one sentence on standard error; anything else is a bug and shows itself."""
    from learnmech.collector.store import StoreError
    from learnmech.laws import UnknownLaw

    try:
        yield
    except (SettingsError, StoreError, UnknownLaw, OSError) as error:
        typer.echo(f"learnmech: {error}", err=True)
        raise typer.Exit(1) from None


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)  # the store says itself what it upgraded
