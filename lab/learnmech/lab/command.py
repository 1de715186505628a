"""`learnmech demo`. Light to import: torch and Lightning are loaded when it runs."""

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from rich.console import Console

_INTERRUPTED: Final = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""


def app(
    quick: Annotated[bool, typer.Option("--quick", help="Smaller trainings: under 40 s instead of 3 minutes.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the live page up until Ctrl-C.")] = False,
    port: Annotated[
        int | None,
        typer.Option(
            help="Port of the live page; 8765 when left out, or any free one if that is taken.", min=0, max=65535
        ),
    ] = None,
    database: Annotated[
        str, typer.Option("--db", help="Where the runs are stored: sqlite:///FILE or postgresql://USER@HOST/NAME.")
    ] = "sqlite:///learnmech.db",
    seed: Annotated[int, typer.Option(help="Seed of data and weights.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON; the rest goes to stderr.")] = False,
) -> None:
    """Train on real data, measure, store, judge and show it: the whole path on one machine."""
    _require_lab()
    from rich.console import Console

    from learnmech.lab import demo, report
    from learnmech.lab.embedded import CollectorError, EmbeddedCollector

    console = Console(stderr=as_json)
    options = demo.Options(quick=quick, database=database, port=port, seed=seed)
    try:
        with _terminated_as_interrupted(), EmbeddedCollector(database, port) as collector:
            result = demo.run(options, collector, console)
            if as_json:
                typer.echo(json.dumps(result.document(), indent=2))
            report.show(result, console)
            if keep:
                _keep(collector.check, f"live page: {result.url}/  (Ctrl-C ends it)", console)
    except CollectorError as error:
        typer.echo(f"learnmech demo: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        console.print("interrupted: the collector is stopped, what was measured is stored", highlight=False)
        raise typer.Exit(_INTERRUPTED) from None
    if result.problems:
        raise typer.Exit(1)


def _require_lab() -> None:
    """Say early and once that the extra is missing; the command line turns this into what to install.

    Raises:
        ModuleNotFoundError: It is.
    """
    for package in ("pytorch_lightning", "sklearn"):
        if find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)


def _keep(check: Callable[[], None], words: str, console: "Console") -> None:
    """Wait for Ctrl-C, or for the end of the collector, which `check` raises."""
    console.print(words, highlight=False)
    try:
        while True:
            time.sleep(1.0)
            check()
    except KeyboardInterrupt:
        console.print()


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the demo as Ctrl-C does: with the collector stopped, not orphaned."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
