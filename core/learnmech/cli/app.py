"""The `learnmech` command: subcommands of every installed part, found through the entry-point group."""

import json
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points, version
from typing import Annotated, Any

import typer

from learnmech.cli import listing

GROUP = "learnmech.commands"
"""Entry-point group through which a part adds a subcommand: a `typer.Typer` or a function in Typer's style."""

_EXTRAS = {
    "torch": "probes",
    "numpy": "probes",
    "urllib3": "probes",
    "sqlalchemy": "collector",
    "alembic": "collector",
    "fastapi": "collector",
    "starlette": "collector",
    "uvicorn": "collector",
    "prometheus_client": "collector",
    "psycopg": "postgres",
    "sklearn": "lab",
    "lightning": "lab",
    "pytorch_lightning": "lab",
}
"""Which extra brings a package that an import did not find."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a missing extra becomes one sentence that says what to install."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        build()(args=words, prog_name="learnmech")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        extra = _EXTRAS.get(package)
        if extra is None:
            raise
        command = next((word for word in words if not word.startswith("-")), "")
        typer.echo(
            f"learnmech {command} needs the {extra} extra ({package} is not installed): pip install "
            f"'learnmech[{extra}]'",
            err=True,
        )
        raise SystemExit(3) from None


def build() -> typer.Typer:
    """Assemble the application from core's own commands and those of the installed parts."""
    app = typer.Typer(
        name="learnmech",
        help="The instrument panel of a training run: what was measured beside what theory predicts.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    app.command("laws")(laws)
    app.command("observables")(observables)
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        _add(app, entry)
    return app


def _add(app: typer.Typer, entry: EntryPoint) -> None:
    try:
        command: Any = entry.load()
    except ImportError as error:
        # One broken part must not take the others' commands with it; its own says what is missing.
        command = _failing(entry.name, error)
    if isinstance(command, typer.Typer):
        app.add_typer(command, name=entry.name)
    else:
        # how words are parsed is the part's own affair, such as leaving those after a script to the script
        app.command(entry.name, context_settings=getattr(command, "context_settings", None))(command)


def _failing(name: str, error: ImportError) -> Callable[[], None]:
    def command() -> None:
        raise error

    command.__doc__ = f"Not available: {error}"
    command.__name__ = name
    return command


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("learnmech"))
        raise typer.Exit


def _options(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Hold the options that stand before a subcommand."""


def laws(
    name: Annotated[str | None, typer.Argument(help="One law, whole; all of them in a table when left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the laws that learnmech judges, or show one."""
    try:
        rows = listing.laws(name)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    elif name is None:
        listing.show_table("Laws", rows, ("name", "title", "band", "reference"))
    else:
        listing.show_law(rows[0])


def observables(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the vocabulary: every observable with its unit and definition."""
    rows = listing.observables()
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        listing.show_table("Observables", rows, ("name", "kind", "unit", "description"))
