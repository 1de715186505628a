"""Two copies of one training that take turns, one of them recorded: what the recorder adds, measured in two ways."""

import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.models import TASKS, Batch, loss_fn, random_batch
from benchmarks.probe_cost import train
from learnmech.probes import Recorder
from learnmech.probes.probe import Probe

BLOCK = 20
"""Steps in a block: one measurement of the dearest default probe takes half of one."""
TENSORS = 300
"""Parameters of the model that has nothing but parameters: what the calls cost at every step is timed on it."""
LEAST = 10
"""Pairs of blocks at least."""
WARM = 3
"""Uses of each probe before anything counts."""
RESAMPLED = 2000
BATCHES = 4
"""Batches that take turns: descent on one batch would be taken for descent on the whole training set."""


@dataclass(frozen=True)
class Case:
    """One row: which probes, at which budget, over how many micro-batches, and what they may cost."""

    title: str
    probes: Callable[[], list[Probe] | None]
    budget: float
    pieces: int
    goal: float


@dataclass(frozen=True)
class Pair:
    """Seconds of a block without and with the recorder, and seconds in calls of the recorder, on the wall."""

    plain: float
    recorded: float
    calls: float


@dataclass(frozen=True)
class Row:
    """What was found.

    Attributes:
        pairs: Blocks that count.
        told: What the recorder itself said, over the same blocks.
        uses: How often each probe measured in them.
        shares: Which share of the time each probe took, as it was charged.
    """

    pairs: list[Pair]
    told: float
    uses: dict[str, int]
    shares: dict[str, float]

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
    def calls(self) -> float:
        """Return the share of the time that was spent in calls of the recorder."""
        return sum(pair.calls for pair in self.pairs) / sum(pair.plain for pair in self.pairs)

    @property
    def microseconds(self) -> float:
        """Return the microseconds of a step spent in calls of the recorder, in the median block."""
        return 1e6 * statistics.median(pair.calls for pair in self.pairs) / BLOCK


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


class Timed(Recorder):
    """A recorder whose calls are timed from outside.

    Attributes:
        seconds: Time in them.
    """

    seconds = 0.0

    def _before_step(self, *arguments: Any) -> None:
        begin = time.perf_counter()
        super()._before_step(*arguments)
        self.seconds += time.perf_counter() - begin

    def after_backward(self, batch: Any) -> None:
        """Take the time of the call."""
        begin = time.perf_counter()
        super().after_backward(batch)
        self.seconds += time.perf_counter() - begin

    def after_step(self, batch: Any, loss: Any = None) -> None:
        """Take the time of the call."""
        begin = time.perf_counter()
        super().after_step(batch, loss)
        self.seconds += time.perf_counter() - begin


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
        wrap: What is put around the models, such as `DistributedDataParallel`.
    """

    def __init__(
        self,
        name: str,
        case: Case,
        device: str,
        folder: str,
        wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
    ) -> None:
        self._batches: list[list[Batch]] = []
        for _ in range(BATCHES):
            inputs, targets = (tensor.to(device) for tensor in _batch(name))
            pieces = zip(inputs.chunk(case.pieces), targets.chunk(case.pieces), strict=True)
            self._batches.append(list(pieces))
        self._models = []
        for _ in range(2):
            torch.manual_seed(0)
            model = wrap(_model(name).to(device))
            self._models.append((model, torch.optim.AdamW(model.parameters(), lr=1e-4)))
        self.recorder = Timed(
            *self._models[1],
            loss_fn,
            case.probes(),
            sink=f"spool:{folder}",
            budget=case.budget,
            accumulation=case.pieces,
        )
        self._case = case
        self._order = random.Random(0)

    def _block(self, recorded: bool) -> float:
        model, optimizer = self._models[int(recorded)]
        recorder = self.recorder if recorded else None
        return _spent(
            lambda: [train(model, self._batches[step % BATCHES], optimizer, recorder) for step in range(BLOCK)]
        )

    def pairs(self) -> Iterator[Pair]:
        """Train for ever, a block of each in turn; what the recorder's clock sees of the other is taken out of it."""
        agenda = self.recorder._engine.runner.agenda  # type: ignore[union-attr]  # noqa: SLF001 (its clock is stopped)
        while True:
            found = {}
            before = self.recorder.seconds
            for recorded in self._order.sample([False, True], 2):
                begin = time.perf_counter()
                found[recorded] = self._block(recorded)
                if not recorded:
                    agenda.exclude(time.perf_counter() - begin)
            yield Pair(found[False], found[True], self.recorder.seconds - before)

    def row(self, seconds: float, tick: Callable[[float], None], agreed: Callable[[bool], bool] = bool) -> Row:
        """Measure one row.

        Args:
            seconds: For so long.
            tick: Told of the seconds that have passed.
            agreed: What all processes make of the answer of one of them.
        """
        with self.recorder as recorder:
            runner = recorder._engine.runner  # type: ignore[union-attr]  # noqa: SLF001 (to compare with what it says)
            governor = runner.governor
            accounts = governor.accounts
            began = time.perf_counter()
            pairs = self.pairs()
            governor.budget = 1.0  # so that warm-up takes minutes less
            while agreed(
                bool(self._case.budget) and not all(accounts[name].uses >= WARM for name in governor.governed)
            ):
                next(pairs)
            governor.change(self._case.budget, runner.agenda.elapsed)
            before = {probe: (account.uses, account.spent) for probe, account in accounts.items()}
            spent = governor.total + governor.bookkeeping
            counted: list[Pair] = []
            while agreed(len(counted) < LEAST or time.perf_counter() - began < seconds):
                counted.append(next(pairs))
                tick(time.perf_counter() - began)
            told = governor.total + governor.bookkeeping - spent
            recorded = sum(pair.recorded for pair in counted)
            uses = {probe: account.uses - before[probe][0] for probe, account in accounts.items()}
            shares = {probe: (account.spent - before[probe][1]) / recorded for probe, account in accounts.items()}
            return Row(counted, told / recorded, uses, shares)
