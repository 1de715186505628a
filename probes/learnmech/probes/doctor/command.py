"""`learnmech doctor`. Light to import: torch and Lightning are loaded in the children that train."""

import json
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    from learnmech.probes.doctor.children import Outcome, Target

_INTERRUPTED: Final = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""

_UNUSABLE, _NOTHING = 3, 4
"""Exit codes of a child; see `learnmech.probes.doctor.inside`."""

EXAMPLE = """with Recorder(model, optimizer, loss_fn) as recorder:
    for batch in loader:
        ...
        optimizer.step()
        recorder.after_step(batch, loss)"""
"""What a loop of one's own looks like to be followed."""


def app(
    target: Annotated[
        str, typer.Argument(help="A training script, train.py, or module:name of a LightningModule or a factory.")
    ],
    arguments: Annotated[
        list[str] | None, typer.Argument(help="Arguments of the script. Options of doctor stand before the target.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="For module:name: module:function that returns the training loader or a LightningDataModule."
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(help="Share of the time for probes; the script's own, or 0.01, when left out.", min=1e-6, max=1.0),
    ] = None,
    uses: Annotated[int, typer.Option(help="Measurements of each probe; the first one is cold.", min=2, max=20)] = 2,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show what the script prints, on stderr.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Say which probes work for a training, by which method, at what cost, how often within the budget.

    The script runs up to its first training, which is followed for some dozens of updates and then stopped; nothing is
    stored. Exit code 0: all probes that the run would have work and change nothing; 1: not so, or the script failed; 2:
    there is nothing to train.

    Raises:
        Exit: With the exit code.
        ModuleNotFoundError: The extra is missing; the command line turns this into what to install.
    """
    if find_spec("torch") is None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")
    _check(target, arguments or [], data)
    from learnmech.probes.doctor.children import Target

    wish = Target(target, arguments or [], data, uses)
    try:
        with _terminated_as_interrupted(), tempfile.TemporaryDirectory(prefix="learnmech-doctor-") as folder:
            report = _examine(wish, Path(folder), budget, verbose=verbose)
    except KeyboardInterrupt:
        typer.echo("interrupted: the training is stopped, nothing is stored", err=True)
        raise typer.Exit(_INTERRUPTED) from None
    from rich.console import Console

    from learnmech.probes.doctor import findings
    from learnmech.probes.doctor.report import show

    if as_json:
        typer.echo(json.dumps(report, indent=2, allow_nan=False))
    else:
        show(report, Console(highlight=False))
    if not findings.succeeded(report):
        raise typer.Exit(1)


app.context_settings = {"allow_interspersed_args": False, "ignore_unknown_options": True}  # type: ignore[attr-defined]  # what stands after the script is the script's


def _check(target: str, arguments: list[str], data: str | None) -> None:
    if target.endswith(".py"):
        if not Path(target).is_file():
            raise typer.BadParameter(f"there is no file {target}")
        if data is not None:
            raise typer.BadParameter("--data belongs to module:name; a script has its own data")
        return
    if ":" not in target.strip(":"):
        raise typer.BadParameter(f"{target!r}: expected a script such as train.py, or package.module:Name")
    if arguments:
        said = " ".join(arguments)
        raise typer.BadParameter(f"{said!r} stands after {target}, which takes no arguments; options stand before it")
    if data is not None and ":" not in data.strip(":"):
        raise typer.BadParameter(f"--data {data}: expected module:function, such as mydata:loader")


def _examine(target: "Target", folder: Path, budget: float | None, *, verbose: bool) -> dict[str, Any]:
    """Train with every probe, then without any, and put together what came out."""
    from learnmech.probes.doctor import children, findings

    with _progress() as tell:

        def train(name: str, updates: int | None, words: str) -> "Outcome":
            return children.train(
                target, folder / name, updates, lambda how: tell(f"{words} {how}".strip()), verbose=verbose
            )

        probed = train("probed", None, f"{target.name} with probes")
        result = _result(probed, target, verbose=verbose)
        count = len(result["steps"])
        alone = train("alone", count, f"{target.name} without, to compare").result
        again = None
        if alone is not None and alone["fingerprints"] != result["fingerprints"]:
            again = train("again", count, f"{target.name} without, once more").result
    context, events = _recorded(folder / "probed" / "spool")
    return findings.document(target.name, result, alone, again, context, events, budget)


def _result(outcome: "Outcome", target: "Target", *, verbose: bool) -> dict[str, Any]:
    """Return what the child wrote down; without that, say why there is nothing, and exit."""
    if outcome.code == 0 and outcome.result is not None and outcome.result["steps"]:
        return outcome.result
    if not outcome.began:
        typer.echo(f"{outcome.output}learnmech doctor: could not begin; the error above is not the script's", err=True)
        raise typer.Exit(1)
    if outcome.code == _UNUSABLE:
        typer.echo(f"learnmech doctor: {outcome.problem}", err=True)
        raise typer.Exit(2)
    if not verbose:
        typer.echo(outcome.output, err=True, nl=False)
    if outcome.code in (0, _NOTHING):
        typer.echo(
            f"learnmech doctor: {target.name} ended without a training that could be followed: no Trainer.fit of "
            f"Lightning made an update, and no Recorder was told of one. A loop of your own needs one:\n{EXAMPLE}",
            err=True,
        )
        raise typer.Exit(2)
    how = f"was ended by signal {-outcome.code}" if outcome.code < 0 else f"exited with {outcome.code}"
    typer.echo(
        f"learnmech doctor: {target.name} {how} before the dry run was over; the error above is its own", err=True
    )
    raise typer.Exit(1)


def _recorded(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return what the run said of itself, and its events."""
    import msgspec

    from learnmech.wire.spool import batches

    found = list(batches(folder))
    events = [msgspec.to_builtins(event) for batch in found for frame in batch.frames for event in frame.events]
    return (dict(found[0].run.context) if found else {}), events


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Show what is under way where somebody can see it."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    with console.status("") as status:
        yield status.update


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM end the dry run as Ctrl-C does: with the child stopped, not orphaned."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
