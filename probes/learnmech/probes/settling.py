"""What remains to be done after a step: take in what devices have finished, tell what measuring costs, hand over."""

import time

from learnmech.probes.guard import Guard
from learnmech.probes.overhead import Overhead
from learnmech.probes.readback import Readback
from learnmech.probes.runner import Runner
from learnmech.probes.writer import Writer
from learnmech.wire import Measurement

INTERVAL = 1.0
"""Seconds between records of `overhead`."""


class Settling:
    """Settles what a step has left behind.

    Args:
        runner: Runs the probes, and knows their costs.
        writer: Where measurements and events go.
        readback: What is on its way from devices.
        guard: Knows the time spent in the engine.
        start_step: First step of this attempt.
    """

    def __init__(self, runner: Runner, writer: Writer, readback: Readback, guard: Guard, start_step: int) -> None:
        self._runner = runner
        self._writer = writer
        self._readback = readback
        self._guard = guard
        self._overhead = Overhead(start_step)
        self._told = time.perf_counter()
        self._told_at = -1

    def pending(self, step: int) -> bool:
        """Tell whether there may be anything to settle: not on most steps, which must cost next to nothing."""
        runner = self._runner
        if self._writer.pending or self._readback.queue or runner.charges.running:
            return True
        return not runner.agenda.idle(step)  # which it is for half a second at most: costs are told in time

    def settle(self, step: int) -> None:
        """Take in what devices have finished, record the overhead now and then, and hand everything over."""
        self._readback.poll()
        self._runner.charges.poll()
        self._runner.governor.bookkeeping = max(self._guard.seconds - self._runner.charges.host, 0.0)
        now = time.perf_counter()
        if now - self._told >= INTERVAL and step != self._told_at:
            self._told, self._told_at = now, step
            self._writer.add(step, self._costs(step))
        self._writer.flush()

    def _costs(self, step: int) -> list[Measurement]:
        governor = self._runner.governor
        spent = governor.bookkeeping + governor.total
        found = self._overhead.measured(step, self._runner.agenda.elapsed, spent)
        return found + self._runner.costs_of_updates()

    def last(self, step: int) -> None:
        """Wait for devices, and take in everything that is left."""
        self._readback.drain()
        self._runner.charges.poll()
        if step != self._told_at:
            self._writer.add(step, self._costs(step))
