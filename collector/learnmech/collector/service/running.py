"""What `learnmech collect` does: serve, check, or store a spool."""

import json
import logging
import os
from pathlib import Path

import typer

from learnmech.collector.judging import Judge
from learnmech.collector.service.readiness import Readiness
from learnmech.collector.service.server import Service, bind
from learnmech.collector.service.settings import Settings, SettingsError
from learnmech.collector.store import InvalidBatch, Store
from learnmech.sinks import identity
from learnmech.wire import Rejection
from learnmech.wire.segments import Damage
from learnmech.wire.spool import batches

logger = logging.getLogger("learnmech.collector.service")

_MOST_REASONS = 10


def serve(store: Store, settings: Settings, database: str, ready_file: Path | None) -> None:
    """Serve until SIGTERM or SIGINT. The port is taken and the page's address printed before this blocks.

    Raises:
        SettingsError: The ready file's folder does not exist or cannot be written to.
    """
    if ready_file is not None and not os.access(ready_file.absolute().parent, os.W_OK):
        raise SettingsError(
            f"ready file {ready_file} cannot be written; expected a file in an existing folder that this user may "
            f"write to: mkdir -p {ready_file.parent}"
        )
    service = Service(settings, store)

    def announce() -> None:
        if ready_file is not None:
            # Whole or not at all: whoever waits for the file reads it the moment it exists.
            partial = ready_file.with_name(f".{ready_file.name}.{os.getpid()}")
            partial.write_text(
                json.dumps({"url": service.url, "port": service.port, "pid": os.getpid()}), encoding="utf-8"
            )
            partial.replace(ready_file)
        typer.echo(f"learnmech collector: {service.url}/")
        typer.echo(f"  trainers:  sink={service.url!r}")
        typer.echo(f"  database:  {identity(database)}")
        typer.echo(f"  token:     {'required' if settings.token else 'none, so only this machine is answered'}")

    service.run(announce)
    if ready_file is not None:
        ready_file.unlink(missing_ok=True)
    typer.echo("learnmech collector: stopped; everything acknowledged is stored")


def check(store: Store, settings: Settings, database: str) -> None:
    """Say that `collect` would start here: the database is ours, current and answers, and the port can be had."""
    Readiness(store).check()
    bind(settings).close()
    token = "a token is required" if settings.token else "no token, so only this machine would be answered"
    typer.echo(f"ready: {identity(database)} is ours and current; {settings.host}:{settings.port} is free; {token}")


def check_spool(folder: Path) -> None:
    """Make sure that there is a folder to read.

    Raises:
        SettingsError: There is none.
    """
    if not folder.is_dir():
        raise SettingsError(f"{folder} is no folder; expected a spool such as .learnmech/spool")


def ingest(store: Store, folder: Path) -> None:
    """Store everything in a spool folder and judge it. The files stay as they are; doing it twice changes nothing.

    Raises:
        SettingsError: The folder holds no segments.
        typer.Exit: Something in it could not be read or was refused; everything else is stored.
    """
    problems: list[str] = []

    def damaged(path: Path, damage: Damage) -> None:
        lost = (
            ""
            if damage.after is None or damage.before is None
            else f", between frames {damage.after} and {damage.before}"
        )
        problems.append(f"{path}: {damage.size} bytes at {damage.offset} cannot be read ({damage.kind}{lost})")

    def rejected(path: Path, rejection: Rejection) -> None:
        problems.append(f"{path}: frame {rejection.sequence}: {rejection.observable}: {rejection.reason}")

    runs: dict[str, str] = {}
    accepted = duplicates = 0
    for batch in batches(folder, damaged, rejected):
        runs[batch.run.id] = batch.run.name
        try:
            ack = store.ingest(batch)
        except InvalidBatch as error:
            problems.append(f"run {batch.run.name}, frames {batch.frames[0].sequence} on: {error}")
            continue
        accepted += ack.accepted
        duplicates += ack.duplicates
        problems.extend(f"run {batch.run.name}: {r.observable}: {r.reason}" for r in ack.rejected)
    if not runs and not problems:
        raise SettingsError(f"{folder} holds no segments; expected a spool such as .learnmech/spool")
    judge = Judge(store)
    rows = sum(judge.judge(run) for run in runs)
    typer.echo(
        f"stored {accepted} measurements of {len(runs)} runs ({duplicates} were there already) and judged them "
        f"({rows} residuals); {folder} is unchanged"
    )
    if problems:
        for problem in problems[:_MOST_REASONS]:
            typer.echo(f"  not stored: {problem}", err=True)
        if len(problems) > _MOST_REASONS:
            typer.echo(f"  not stored: {len(problems) - _MOST_REASONS} more like these", err=True)
        raise typer.Exit(1)
