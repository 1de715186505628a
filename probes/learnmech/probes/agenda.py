"""When each probe is due: by its schedule, by the budget, in several processes by what the first one decided."""

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from learnmech.probes import deadline
from learnmech.probes.budget import Governor
from learnmech.probes.health import Health
from learnmech.probes.probe import Moment, Probe

if TYPE_CHECKING:
    from learnmech.probes.distributed import Peers

FARTHEST = 1e6
"""Steps ahead that a measurement is planned at most."""
LONGEST_REST = 1.0
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
    """

    def __init__(
        self, probes: Sequence[Probe], governor: Governor, health: Health, *, start_step: int, foresees: bool
    ) -> None:
        self.peers: Peers | None = None
        self.shares_loss = True
        self.sharded = False
        self.gone: set[str] = set()
        self._probes = probes
        self._governor = governor
        self._health = health
        self._foresees = foresees
        self._start_step = start_step
        self._begin = time.perf_counter()
        self._idle_to, self._idle_till = 0.0, 0.0
        self._next: dict[str, int] = {}
        self._last: dict[str, tuple[int, float]] = {}
        # weights at rest are first seen after an update: step 0 is not made up for at step 1
        self._since = {
            probe.name: start_step if self.moment_of(probe) is Moment.AT_REST else start_step - 1 for probe in probes
        }
        for probe in probes:
            governor.open(probe.name, governed=probe.schedule is None, appetite=appetite(probe))

    @property
    def elapsed(self) -> float:
        """Seconds since the attempt began."""
        return time.perf_counter() - self._begin

    def exclude(self, seconds: float) -> None:
        """Leave time out of the run's, in which the training did not go on."""
        self._begin += seconds

    def due(self, moment: Moment, step: int, among: Sequence[Probe] | None = None) -> list[Probe]:
        """List the probes that are due at a moment of a step.

        Args:
            moment: The moment.
            step: The step.
            among: Those of the probes that are asked for; None: all of them.
        """
        if step < self._idle_to and time.perf_counter() < self._idle_till:
            return []
        ready = [probe for probe in self._probes if self._is_due(probe, step)]
        if not ready:
            self._rest(step)
        wanted = ready if among is None else [probe for probe in ready if probe in among]
        return [probe for probe in wanted if self.moment_of(probe) is moment]

    def _rest(self, step: int) -> None:
        """Note until when nothing will be due: on most steps that is all there is to look at."""
        steps, seconds = [step + FARTHEST], [LONGEST_REST]
        for probe in self._probes:
            name, schedule = probe.name, probe.schedule
            if schedule is not None:
                steps.append(schedule.next(step))
            elif self.together(probe):
                steps.append(self._next.get(name, 0))
            elif self._health.well(name):
                seconds.append(self._governor.wait(name, self.elapsed))
        self._idle_to, self._idle_till = min(steps), time.perf_counter() + min(seconds)

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
        name, schedule = probe.name, probe.schedule
        together = self.peers is not None and self.shares(probe)
        # whether others count on it does not depend on what has happened to it here
        if name in self.gone if together else name in self._health.off:
            return False
        if schedule is not None:
            return schedule.due(step, self._since[name])
        if together:
            return self._governor.budget > 0 and step >= self._next.get(name, 0)
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

    def _step_allowed(self, name: str, step: int) -> float:
        """Return the step at which a probe may run again by the budget, if steps take as long as they have taken."""
        now = self.elapsed
        begun, since = self._last.get(name, (self._start_step, self._governor.total))
        self._last[name] = (step, now)
        pace = (now - since) / max(step - begun, 1)
        wait = self._governor.wait(name, now) / pace if pace > 0 else 1.0
        return step + max(1.0, min(math.ceil(min(wait, FARTHEST)), FARTHEST))
