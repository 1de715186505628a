"""When each probe is due: by its schedule, by the budget, in several processes by what the first one decided."""

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from learnmech.probes import deadline
from learnmech.probes.budget import Governor
from learnmech.probes.health import Health
from learnmech.probes.probe import Moment, Probe
from learnmech.probes.schedule import OnDemand

if TYPE_CHECKING:
    from learnmech.probes.distributed import Peers

FARTHEST = 1e6
"""Steps ahead that a measurement is planned at most."""
PACE_OVER = 50
"""Steps over which the time of a step is averaged."""
LONGEST_REST = 0.5
"""Seconds after which probes are looked at again: shares of the budget may have changed."""


def replays(probe: Probe) -> bool:
    """Tell whether a probe says that it evaluates the loss."""
    return bool(getattr(probe, "replays", False))


def collective(probe: Probe, *, sharded: bool) -> bool:
    """Tell whether a probe can be measured by all processes together.

    Args:
        probe: The probe.
        sharded: Whether parameters are sharded over the processes.
    """
    return bool(getattr(probe, "collective", False)) or (sharded and bool(getattr(probe, "sums_shards", False)))


def appetite(probe: Probe) -> float:
    """Return the largest share of the budget that a probe takes, if it is left to the budget."""
    return float(getattr(probe, "appetite", 1.0))


class Agenda:
    """Tells which probes are due.

    Args:
        probes: The probes.
        governor: Decides about probes without a schedule.
        health: Tells which of them still run.
        start_step: First step of this attempt.
        foresees: True if a batch is known before the update that it is used for.

    Attributes:
        peers: The processes that measure together with this one; None: there are no others.
        shares_loss: Whether processes may evaluate the loss together.
        sharded: Whether parameters are sharded over processes.
        gone: Names of probes that have been switched off in all processes.
        trouble: Called with a probe whose schedule fails, the step and the reason.
    """

    def __init__(
        self, probes: Sequence[Probe], governor: Governor, health: Health, *, start_step: int, foresees: bool
    ) -> None:
        self.peers: Peers | None = None
        self.shares_loss = True
        self.sharded = False
        self.gone: set[str] = set()
        self.trouble: Callable[[Probe, int, str], None] = lambda probe, step, reason: None  # noqa: ARG005 (replaced)
        self._probes = probes
        self._governor = governor
        self._health = health
        self._foresees = foresees
        self._start_step = start_step
        self._begin = time.perf_counter()
        self._idle_to, self._idle_till = 0.0, 0.0
        self._next: dict[str, int] = {}
        self._pace, self._ended, self._paid = 0.0, self._begin, 0.0
        # weights at rest are first seen after an update: what was due at the first step is not made up for after it,
        # but for what was asked for
        unseen = start_step == 0 or not foresees
        self._since = {
            probe.name: start_step
            if unseen and self.moment_of(probe) is Moment.AT_REST and not isinstance(probe.schedule, OnDemand)
            else start_step - 1
            for probe in probes
        }
        for probe in probes:
            if probe.schedule is not None:
                probe.schedule.begin()
            governor.open(probe.name, governed=probe.schedule is None, appetite=appetite(probe))

    @property
    def elapsed(self) -> float:
        """Seconds since the attempt began."""
        return time.perf_counter() - self._begin

    def exclude(self, seconds: float) -> None:
        """Leave time out of the run's, in which the training did not go on."""
        self._begin += seconds

    def idle(self, step: int) -> bool:
        """Tell at once, on most steps, that no probe is due at any of its moments."""
        return step < self._idle_to and time.perf_counter() < self._idle_till

    def due(self, moment: Moment, step: int) -> list[Probe]:
        """List the probes that are due at a moment of a step."""
        if self.idle(step):
            return []
        ready = [probe for probe in self._probes if self._is_due(probe, step)]
        if not ready:
            self._rest(step)
        return [probe for probe in ready if self.moment_of(probe) is moment]

    def _rest(self, step: int) -> None:
        """Note until when nothing will be due: on most steps that is all there is to look at."""
        steps, seconds = [step + FARTHEST], [LONGEST_REST]
        for probe in self._probes:
            if self._is_off(probe):
                continue
            if probe.schedule is not None:
                steps.append(self._asked(probe, step, probe.schedule.next))
            elif self.together(probe):
                steps.append(self._next.get(probe.name, 0))
            else:
                seconds.append(self._governor.wait(probe.name, self.elapsed))
        self._idle_to, self._idle_till = min(steps), time.perf_counter() + min(seconds)

    def _is_off(self, probe: Probe) -> bool:
        # whether others count on it does not depend on what has happened to it here
        return probe.name in self.gone if self.together(probe) else probe.name in self._health.off

    def _asked(self, probe: Probe, step: int, question: Callable[[int], float]) -> float:
        """Return what a schedule says; one of the user's may raise, and ends the probe then, in this process."""
        try:
            return float(question(step))  # None, or an array, is a failure as well
        except Exception as error:  # noqa: BLE001 (it is asked in the midst of the training)
            self.trouble(probe, step, f"its schedule {probe.schedule!r} raised {type(error).__name__}: {error}"[:500])
            return math.inf

    def moment_of(self, probe: Probe) -> Moment:
        """Return when a probe measures in this run; one that does not say so measures at rest."""
        moment: Moment | str = getattr(probe, "moment", Moment.AT_REST)
        if not isinstance(moment, Moment):
            moment = Moment(moment)
        if moment is Moment.UNSEEN:  # a batch of the probe's own is not that of any update
            unseen = self._foresees or getattr(probe, "batch", None) is not None
            return Moment.AT_REST if unseen else Moment.UPDATE
        return moment

    def _is_due(self, probe: Probe, step: int) -> bool:
        if self._is_off(probe):
            return False
        name, schedule = probe.name, probe.schedule
        if schedule is not None:
            return self._asked(probe, step, lambda now: schedule.due(now, self._since[name])) == 1.0
        if self.together(probe):
            planned = self._governor.budget > 0 and step >= self._next.get(name, 0)
            if planned:  # what it has saved until now is for this use alone
                self._governor.settle(name, self.elapsed)
            return planned
        return self._governor.may_run(name, self.elapsed)

    def together(self, probe: Probe) -> bool:
        """Tell whether all processes measure this probe together."""
        return self.peers is not None and self.shares(probe)

    def shares(self, probe: Probe) -> bool:
        """Tell whether all processes measure this probe together once they have met."""
        return collective(probe, sharded=self.sharded) and (self.shares_loss or not replays(probe))

    def looked(self, name: str, step: int) -> None:
        """Take note that a probe has looked at a step, with success or without."""
        self._since[name] = step

    def agree(self, probe: Probe, step: int, peers: "Peers") -> None:
        """Agree with the other processes on a probe's next step: the first decides for all, since clocks differ."""
        own = torch.tensor([self._step_allowed(probe.name, step)], dtype=torch.float64)
        self._next[probe.name] = int(peers.first(own))

    def patience(self, step: int) -> float:
        """Return the seconds that a measurement may take."""
        steps = max(step - self._start_step, 1)
        return max(deadline.LEAST, deadline.STEPS * (self.elapsed - self._governor.total) / steps)

    def stepped(self) -> None:
        """Take note that a step has ended: how long an ordinary one takes, pauses and measurements left out."""
        spent, now = self._governor.total, time.perf_counter()
        took = max(now - self._ended - (spent - self._paid), 0.0)
        self._ended, self._paid = now, spent
        # a pause counts as two steps, so that the pace still follows steps that have become slower
        self._pace = took if self._pace == 0 else self._pace + (min(took, 2 * self._pace) - self._pace) / PACE_OVER

    def _step_allowed(self, name: str, step: int) -> float:
        """Return the step at which a probe may run again by the budget, if steps go on as they have gone."""
        pace = self._pace or (self.elapsed - self._governor.total) / max(step - self._start_step, 1)
        wait = self._governor.wait(name, self.elapsed) / pace if pace > 0 else 1.0
        return step + max(1.0, min(math.ceil(min(wait, FARTHEST)), FARTHEST))
