"""The do-no-harm matrix: one training with the monitor and one without, compared bit by bit, in every setting.

    python -m benchmarks.harmless               a cell for every pair of settings
    python -m benchmarks.harmless --strategies  some cells in two processes
    python -m benchmarks.harmless --full        every combination, into harmless.md beside this file

A cell is a model in a precision, with accumulation, clipping, a wrapper and a set of probes that measure every update.
Compared at four hooks of every batch are weights, gradients, buffers, optimizer state, the loss scale, the batch, all
random streams, what is logged and printed, and the trainer's metrics.
"""

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from benchmarks.harmless_training import PROCESSES, UPDATES, Cell, train
from learnmech import probes as available
from learnmech.probes import Probe, every
from learnmech.probes.lightning import MechanicsMonitor
from learnmech.wire.spool import batches

HERE = Path(__file__).parent
LIMIT = 300
"""Seconds after which a training in several processes counts as deadlocked; it takes 10 to 20 on an idle machine."""

AXES: dict[str, tuple[Any, ...]] = {
    "model": ("mlp", "cnn", "transformer", "lstm"),
    "precision": ("32-true", "bf16-mixed", "bf16-true", "16-mixed"),
    "accumulation": (1, 3),
    "clipping": ("none", "norm", "value"),
    "wrapped": ("plain", "compiled", "checkpointed"),
    "probes": ("default", "curvature", "everything"),
}

STRATEGIES = (
    Cell("mlp", "32-true", 1, "none", "plain", "default", "ddp"),
    Cell("mlp", "bf16-mixed", 3, "norm", "plain", "default", "ddp_spawn"),
    Cell("transformer", "32-true", 3, "value", "checkpointed", "everything", "ddp_fork"),
)


def every_cell() -> list[Cell]:
    """Return every combination."""
    return [Cell(*values) for values in itertools.product(*AXES.values())]


def _pairs(cell: Cell) -> frozenset[tuple[tuple[str, Any], tuple[str, Any]]]:
    settings = [(name, getattr(cell, name)) for name in AXES]
    return frozenset(itertools.combinations(settings, 2))


def pairwise() -> list[Cell]:
    """Return few cells in which any two settings of two kinds meet: next comes the cell with the most new pairs."""
    cells = {cell: _pairs(cell) for cell in every_cell()}
    missing = set().union(*cells.values())
    chosen = []
    while missing:
        best = max(cells, key=lambda cell: len(cells[cell] & missing))
        missing -= cells[best]
        chosen.append(best)
    return chosen


def _loss(model: Any, batch: Any) -> Tensor:
    return model.loss(batch)  # type: ignore[no-any-return]  # a module of this matrix


def probe_set(name: str) -> list[Probe]:
    """Return a set of probes, each at every update."""
    default = ["Sharpness", "GradientNoiseScale", "WeightDynamics"]
    curvature = ["Sharpness", "HessianEigenvalues", "HessianSpectrum", "BatchSharpness", "LossChange"]
    curvature += ["CriticalSharpness"]
    chosen = {"default": default, "curvature": curvature}.get(name)
    if chosen is None:
        chosen = list(dict.fromkeys([*default, *curvature, "Symmetries", "Vitals"]))
    return [getattr(available, each)(every(1)) for each in chosen]


def monitor(cell: Cell, folder: Path) -> MechanicsMonitor:
    """Return the monitor of a cell."""
    loss = None if cell.strategy == "auto" else _loss
    return MechanicsMonitor(probe_set(cell.probes), sink=f"spool:{folder}/spool", loss=loss)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one cell.

    Attributes:
        cell: The cell.
        different: Where the two trainings first differ, '' if they do not.
        failures: What failed in measuring.
        measured: Numbers that were measured and are not merely a refusal.
        unsupported: Observables that were refused.
        seconds: What both trainings took.
    """

    cell: Cell
    different: str
    failures: tuple[str, ...]
    measured: int
    unsupported: tuple[str, ...]
    seconds: float


def first_difference(plain: Any, watched: Any) -> str:
    """Say where two accounts of a training differ first, '' if they do not.

    >>> first_difference([("a", 0, {"x": "1"})], [("a", 0, {"x": "2"})])
    'x at a of step 0'
    """
    for before, after in zip(plain, watched, strict=False):
        names = [name for name in before[2] if before[2][name] != after[2][name]]
        if before[:2] != after[:2] or names:
            return f"{', '.join(names)} at {before[0]} of step {before[1]}"
    return "" if len(plain) == len(watched) > 0 else f"{len(plain)} hooks and {len(watched)}"


def compared(cell: Cell, callbacks: Callable[[Cell, Path], pl.Callback] = monitor) -> Outcome:
    """Train without and with the monitor, and compare."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        plain, watched = Path(name, "plain"), Path(name, "watched")
        for folder in (plain, watched):
            folder.mkdir()
        if cell in STRATEGIES:
            pairs = zip(_in_processes(cell, plain, "plain"), _in_processes(cell, watched, "watched"), strict=True)
        else:
            pairs = zip([train(cell, [], plain)], [train(cell, [callbacks(cell, watched)], watched)], strict=True)
        different = "; ".join(filter(None, itertools.starmap(first_difference, pairs)))
        kept = batches(watched / "spool") if (watched / "spool").exists() else ()
        frames = [frame for batch in kept for frame in batch.frames]
    events = [event for frame in frames for event in frame.events]
    rows = [m for frame in frames for m in frame.measurements]
    return Outcome(
        cell,
        different,
        tuple(event.message for event in events if event.kind == "probe_failed"),
        sum(m.value is not None for m in rows),
        tuple(sorted({m.observable for m in rows if m.status == "unsupported"})),
        time.perf_counter() - begin,
    )


def _in_processes(cell: Cell, folder: Path, how: str) -> list[Any]:
    """Train in a command of its own, which Lightning may start once more for each process."""
    index = str(STRATEGIES.index(cell))
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.harmless", "--train", index, str(folder), how]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(  # the exit status is looked at below
        command, cwd=HERE.parent, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    found = sorted(folder.glob("seen.*.pt"))
    if done.returncode or len(found) != PROCESSES:
        raise RuntimeError(f"{cell} {how}: {len(found)} processes came to the end\n{done.stderr[-3000:]}")
    return [torch.load(path, weights_only=False) for path in found]


def _train_here(index: str, folder: str, how: str) -> int:
    cell = STRATEGIES[int(index)]
    train(cell, [monitor(cell, Path(folder))] if how == "watched" else [], Path(folder))
    return 0


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the report, in Markdown."""
    same = sum(not outcome.different for outcome in outcomes)
    lines = [
        "# The do-no-harm matrix",
        "",
        f"{same} of {len(outcomes)} trainings are the same with the monitor, bit for bit.",
        f"PyTorch {torch.__version__}, Lightning {version('pytorch-lightning')}; {UPDATES} updates, all probes at all.",
        "",
        f"| {' | '.join([*AXES, 'strategy'])} | same | numbers | failures | unsupported | s |",
        f"|{' --- |' * (len(AXES) + 6)}",
    ]
    for outcome in outcomes:
        cells = [*asdict(outcome.cell).values(), outcome.different or "yes", outcome.measured]
        cells += ["; ".join(sorted(set(outcome.failures))) or 0, len(outcome.unsupported), f"{outcome.seconds:.1f}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Compare the cells that are asked for; return 1 if one differs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.harmless", description=__doc__)
    parser.add_argument("--full", action="store_true", help="every combination; writes harmless.md beside this file")
    parser.add_argument("--strategies", action="store_true", help="the cells in several processes")
    parser.add_argument("--train", nargs=3, metavar=("CELL", "FOLDER", "HOW"), help=argparse.SUPPRESS)
    parser.add_argument("--only", default="", help="cells whose name holds this text")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.train:
        return _train_here(*arguments.train)
    cells = list(STRATEGIES) if arguments.strategies else every_cell() if arguments.full else pairwise()
    cells = [cell for cell in cells if arguments.only in str(cell)]
    outcomes = [compared(cell) for cell in track(cells, "training", disable=not sys.stderr.isatty())]
    text = table(outcomes)
    if arguments.full and not arguments.only:
        (HERE / "harmless.md").write_text(text, encoding="utf-8")
    Console(width=200).print(text)
    return int(any(outcome.different for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
