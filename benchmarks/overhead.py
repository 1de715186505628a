"""What a monitored training costs in all, next to the same training without us, in one run.

    make bench ARGS="--only overhead"

Two copies of a training take turns, a block of steps each, in random order; what the recorder's clock sees of the other
copy's blocks is taken out of it. Warm-up is left out, as the budget's promise does: blocks count once every probe left
to the budget has measured three times (at a larger budget, to be there sooner). The overhead is the sum of the
differences over the sum of the plain blocks, with a 95 % interval from resampling pairs of blocks. Time is CPU time of
the process, our background thread included; on an accelerator it is time on the wall, with the device waited for at the
end of each block.
"""

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn

from benchmarks.models import TASKS, Batch, loss_fn, random_batch
from benchmarks.probe_cost import train
from learnmech.probes import GradientNoiseScale, Recorder, WeightDynamics
from learnmech.probes.probe import Probe

NETWORKS = ("cnn", "transformer")
BLOCK = 20
"""Steps in a block: one measurement of the dearest default probe takes half of one."""
SECONDS = 80.0
"""Time for one row."""
TENSORS = 300
"""Parameters of the model that has nothing but parameters: what the hooks cost at every step is timed on it."""
LEAST = 10
"""Pairs of blocks in a row at least."""
WARM = 3
"""Uses of each probe before anything counts."""
RESAMPLED = 2000


@dataclass(frozen=True)
class Case:
    """One row: which probes, at which budget, over how many micro-batches, and what they may cost."""

    title: str
    probes: Callable[[], list[Probe] | None]
    budget: float
    pieces: int
    goal: float


CASES = (
    Case("default probes", lambda: None, 0.01, 1, 0.01),
    Case("default probes", lambda: None, 0.001, 1, 0.001),
    Case("`WeightDynamics` alone", lambda: [WeightDynamics()], 0.01, 1, 0.005),
    Case("noise of 4 micro-batches alone", lambda: [GradientNoiseScale(source="pieces")], 0.01, 4, 0.002),
    Case("no probe: the floor", lambda: [WeightDynamics()], 0.0, 1, 0.0),
)


@dataclass(frozen=True)
class Pair:
    """Seconds of a block without and with the recorder."""

    plain: float
    recorded: float


@dataclass(frozen=True)
class Row:
    """What was found.

    Attributes:
        pairs: Blocks that count.
        told: What the recorder itself said, over the same blocks.
        uses: How often each probe measured in them.
    """

    pairs: list[Pair]
    told: float
    uses: dict[str, int]

    @property
    def overhead(self) -> float:
        """Return the share of the time that was added."""
        return _share(self.pairs)

    @property
    def interval(self) -> tuple[float, float]:
        """Return its 95 % interval."""
        rng = random.Random(0)
        found = sorted(_share(rng.choices(self.pairs, k=len(self.pairs))) for _ in range(RESAMPLED))
        return found[int(0.025 * RESAMPLED)], found[int(0.975 * RESAMPLED)]

    @property
    def microseconds(self) -> float:
        """Return the median difference of a step."""
        return 1e6 * statistics.median(pair.recorded - pair.plain for pair in self.pairs) / BLOCK


def _share(pairs: list[Pair]) -> float:
    return sum(pair.recorded - pair.plain for pair in pairs) / sum(pair.plain for pair in pairs)


def _spent(work: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        begin = time.perf_counter()
        work()
        torch.cuda.synchronize()
        return time.perf_counter() - begin
    begin = time.process_time()
    work()
    return time.process_time() - begin


def _model(name: str) -> nn.Module:
    if name in TASKS:
        return TASKS[name].make()
    return nn.Sequential(*[nn.Linear(8, 8) for _ in range(TENSORS // 2)])


def _batch(name: str) -> Batch:
    return random_batch(name) if name in TASKS else (torch.randn(8, 8), torch.randint(8, (8,)))


class Twins:
    """Two copies of one training, of which one is recorded.

    Args:
        name: Which of the networks.
        case: Which probes.
        device: Where.
        folder: Where the recorder writes.
    """

    def __init__(self, name: str, case: Case, device: str, folder: str) -> None:
        inputs, targets = (tensor.to(device) for tensor in _batch(name))
        self._batches: list[Batch] = list(zip(inputs.chunk(case.pieces), targets.chunk(case.pieces), strict=True))
        self._models = []
        for _ in range(2):
            torch.manual_seed(0)
            model = _model(name).to(device)
            self._models.append((model, torch.optim.AdamW(model.parameters(), lr=1e-4)))
        model, optimizer = self._models[1]
        self.recorder = Recorder(
            model,
            optimizer,
            loss_fn,
            case.probes(),
            sink=f"spool:{folder}",
            budget=case.budget,
            accumulation=case.pieces,
        )
        self._order = random.Random(0)

    def _block(self, recorded: bool) -> float:
        model, optimizer = self._models[int(recorded)]
        recorder = self.recorder if recorded else None
        return _spent(lambda: [train(model, self._batches, optimizer, recorder) for _ in range(BLOCK)])

    def pairs(self) -> Iterator[Pair]:
        """Train for ever, a block of each in turn."""
        agenda = self.recorder._engine.runner.agenda  # type: ignore[union-attr]  # noqa: SLF001 (its clock is stopped)
        while True:
            found = {}
            for recorded in self._order.sample([False, True], 2):
                begin = time.perf_counter()
                found[recorded] = self._block(recorded)
                if not recorded:
                    agenda.exclude(time.perf_counter() - begin)
            yield Pair(found[False], found[True])


def row(name: str, case: Case, device: str, seconds: float, tick: Callable[[float], None]) -> Row:
    """Measure one row."""
    with tempfile.TemporaryDirectory() as folder:
        twins = Twins(name, case, device, folder)
        with twins.recorder as recorder:
            runner = recorder._engine.runner  # type: ignore[union-attr]  # noqa: SLF001 (to compare with what it says)
            governor = runner.governor
            accounts = governor.accounts
            began = time.perf_counter()
            pairs = twins.pairs()
            governor.budget = 1.0  # so that warm-up takes minutes less
            while case.budget and not all(accounts[probe].uses >= WARM for probe in governor.governed):
                next(pairs)
            governor.change(case.budget, runner.agenda.elapsed)
            before = {probe: account.uses for probe, account in accounts.items()}
            spent = governor.total + governor.bookkeeping
            counted: list[Pair] = []
            while len(counted) < LEAST or time.perf_counter() - began < seconds:
                counted.append(next(pairs))
                tick(time.perf_counter() - began)
            told = governor.total + governor.bookkeeping - spent
            uses = {probe: account.uses - before.get(probe, 0) for probe, account in accounts.items()}
            return Row(counted, told / sum(pair.recorded for pair in counted), uses)


def measured(device: str, threads: int, *, quick: bool = False) -> str:
    """Measure all rows; return the whole file."""
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {threads} thread(s)"
    lines = [
        "# What a monitored training costs",
        "",
        '`make bench ARGS="--only overhead"` writes this file.',
        "",
        f"Measured on: {where}, torch {torch.__version__}. Two copies of one training take turns, {BLOCK} steps each.",
        "Overhead: time added, as a share of the plain training's; 95 % interval from resampled pairs of blocks.",
        "Warm-up and the first use of each probe are not in it. `told` is what the recorder says of itself.",
        "",
        "| network | probes | budget | overhead | 95 % interval | told | goal | a step, median | steps | uses |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
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

            lines.append(_line(name, case, row(name, case, device, seconds, tick)))
    return "\n".join(lines) + "\n"


def _line(name: str, case: Case, found: Row) -> str:
    low, high = found.interval
    uses = ", ".join(f"{probe} {count}" for probe, count in found.uses.items() if count)
    goal = f"{case.goal:.1%}" if case.goal else "30 µs"
    return (
        f"| {name} | {case.title} | {case.budget:.1%} | {found.overhead:.2%} | {low:.2%} to {high:.2%} | "
        f"{found.told:.2%} | {goal} | {found.microseconds:.0f} µs | {BLOCK * len(found.pairs)} | {uses} |"
    )
