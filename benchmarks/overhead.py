"""What a monitored training costs in all, next to the same training without us, in one run.

    make bench ARGS="--only overhead"

Two copies of a training take turns, a block of steps each, in random order; what the recorder's clock sees of the other
copy's blocks is taken out of it. Warm-up is left out, as the budget's promise does: blocks count once every probe left
to the budget has measured three times (at a larger budget, to be there sooner). The overhead is the sum of the
differences over the sum of the plain blocks, with a 95 % interval from resampling pairs of blocks. Time is CPU time of
the process, our background thread included; on an accelerator it is time on the wall, with the device waited for at the
end of each block. A training step varies by more than most of our costs: what is spent in calls of the recorder is
timed from outside as well, which tells them to microseconds, but not what they slow down between the calls.
"""

import tempfile

import torch
from rich.console import Console
from rich.progress import Progress

from benchmarks import ranks
from benchmarks.twins import BATCHES, BLOCK, TENSORS, Case, Row, Twins
from learnmech.probes import GradientNoiseScale, WeightDynamics

NETWORKS = ("cnn", "transformer")
SECONDS = 60.0
"""Time for one row."""

CASES = (
    Case("default probes", lambda: None, 0.01, 1, 0.01),
    Case("default probes", lambda: None, 0.001, 1, 0.001),
    Case("`WeightDynamics` alone", lambda: [WeightDynamics()], 0.01, 1, 0.005),
    Case("noise of 4 micro-batches alone", lambda: [GradientNoiseScale(source="pieces")], 0.01, 4, 0.002),
    Case("no probe: the floor", lambda: [WeightDynamics()], 0.0, 1, 0.0),
    Case("no probe, 4 micro-batches: the floor", lambda: [WeightDynamics()], 0.0, 4, 0.0),
)


def measured(device: str, threads: int, *, quick: bool = False) -> str:
    """Measure all rows; return the whole file."""
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {threads} thread(s)"
    lines = [
        "# What a monitored training costs",
        "",
        '`make bench ARGS="--only overhead"` writes this file.',
        "",
        f"Measured on: {where}, torch {torch.__version__}. Two copies of one training take turns,",
        f"{BLOCK} steps each, over {BATCHES} batches. Overhead: time added, as a share of the plain training's; 95 %",
        "interval from resampled pairs of blocks. Calls: time in calls of the recorder, timed from outside: a share",
        "of the same, and microseconds of a step in the median block. Told: what the recorder says of itself; of it",
        "each probe's share is in brackets. Warm-up and the first uses are in none of them.",
        "",
        "| network | probes | budget | overhead | 95 % interval | calls | told | goal | a step | steps | uses |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    chosen = NETWORKS[:1] if quick else NETWORKS
    seconds = SECONDS / 20 if quick else SECONDS
    rows = [(name, case) for name in chosen for case in CASES if case.budget]
    rows += [(name, case) for name in (*chosen, f"{TENSORS} tensors") for case in CASES if not case.budget]
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("network x probes", total=len(rows) * seconds)
        for index, (name, case) in enumerate(rows):

            def tick(passed: float, base: float = index * seconds) -> None:
                progress.update(bar, completed=base + min(passed, seconds))

            with tempfile.TemporaryDirectory() as folder:
                lines.append(_line(name, case, Twins(name, case, device, folder).row(seconds, tick)))
    if device == "cpu":
        lines += [_line(name, ranks.CASE, ranks.row(name, seconds)) for name in chosen]
    return "\n".join(lines) + "\n"


def _line(name: str, case: Case, found: Row) -> str:
    low, high = found.interval
    uses = ", ".join(f"{probe} {count} ({found.shares[probe]:.2%})" for probe, count in found.uses.items() if count)
    goal = f"{case.goal:.1%}" if case.goal else "30 µs"
    return (
        f"| {name} | {case.title} | {case.budget:.1%} | {found.overhead:.2%} | {low:.2%} to {high:.2%} | "
        f"{found.calls:.2%} | {found.told:.2%} | {goal} | {found.microseconds:.0f} µs | "
        f"{BLOCK * len(found.pairs)} | {uses} |"
    )
