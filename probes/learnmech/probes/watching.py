"""Probes that watch the backward passes of an update: told before the first of them, and after each."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from learnmech.probes.guard import Guard
from learnmech.probes.isolation.counting import count
from learnmech.probes.probe import Moment, Probe, TrainingView
from learnmech.probes.runner import Runner


class Watching:
    """Tells the probes that are due what happens before the gradient is complete.

    Args:
        runner: Runs the probes.
        guard: The guard of the engine.

    Attributes:
        probes: The probes that watch now.
    """

    def __init__(self, runner: Runner, guard: Guard) -> None:
        self._runner = runner
        self._guard = guard
        self.probes: list[Probe] = []

    def arm(self, step: int, view: Callable[[], TrainingView]) -> None:
        """Tell the probes that will measure the update of a step that its backward passes come next."""
        self.stop()
        if not self._guard.open:
            return
        with self._guard:
            due = [probe for probe in self._runner.agenda.due(Moment.UPDATE, step) if watches(probe)]
            if due:
                seen = view()
                self.probes = [probe for probe in due if self._runner.arm(probe, seen)]

    def due(self, probe: Probe) -> bool:
        """Tell whether a probe that watches has watched: whether it is due was decided before the first pass."""
        return probe in self.probes

    def stop(self) -> None:
        """Let go of what they watch with: the update has been measured, or will not be."""
        watching, self.probes = self.probes, []
        for probe in watching:
            disarm: Callable[[], None] | None = getattr(probe, "disarm", None)
            if disarm is not None:
                with self._guard:
                    disarm()

    def next_piece(self, batch: Any) -> None:
        """Tell them that the backward pass of a micro-batch has ended."""
        if not self.probes or not self._guard.open:
            return
        with self._guard:
            examples = count(batch)
            for probe in self.probes:
                tell: Callable[[Any, int | None], None] = getattr(probe, "next_piece")  # noqa: B009 (not of all probes)
                self._runner.tell(probe, partial(tell, batch, examples))


def watches(probe: Probe) -> bool:
    """Tell whether a probe watches the backward passes of the updates that it measures."""
    return bool(getattr(probe, "watches", False))


def expect(probes: Iterable[Probe], micro_batches: int, processes: int) -> None:
    """Tell probes what an update will consist of, before a run begins: it may decide when they measure.

    Args:
        probes: The probes of the run.
        micro_batches: Backward passes of each process in an update.
        processes: Processes that measure together.
    """
    for probe in probes:
        told: Callable[[int, int], None] | None = getattr(probe, "expect", None)
        if told is not None:
            told(micro_batches, processes)
