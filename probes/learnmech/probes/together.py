"""Measuring in step with other processes: who takes part, and what a process says that cannot."""

import logging
from collections.abc import Callable, Collection, Sequence
from typing import Any

from learnmech.probes.agenda import replays
from learnmech.probes.distributed import PeerFailed, Peers
from learnmech.probes.distributed.meeting import all_present
from learnmech.probes.guard import Guard
from learnmech.probes.isolation import Skip, Source
from learnmech.probes.probe import Probe, TrainingView
from learnmech.probes.replays import Replays
from learnmech.probes.runner import Runner

logger = logging.getLogger("learnmech.probes")


class Together:
    """Runs the probes that all processes measure together; a process that cannot says so instead of staying away.

    Args:
        runner: Runs the probes.
        replays: Tells whether the loss may be evaluated.
        guard: The guard of the engine.
    """

    def __init__(self, runner: Runner, replays: Replays, guard: Guard) -> None:
        self._runner = runner
        self._replays = replays
        self._guard = guard

    def join(self, peers: Peers | None) -> bool:
        """Measure together with other processes, all of which call this before the first step; tell whether they came.

        Args:
            peers: The processes, this one among them; None: there are no others.
        """
        if peers is None or not any(map(self._runner.agenda.shares, self._runner.probes)):
            return False
        if not all_present(peers, _signature([*filter(self._runner.agenda.shares, self._runner.probes)])):
            logger.warning("learnmech measures in one process alone: the others have no monitor, or other probes")
            return False
        self._runner.agenda.peers = peers
        return True

    def measure(
        self,
        due: Sequence[Probe],
        step: int,
        batch: Any,
        source: Callable[[], Source],
        build: Callable[[Peers], TrainingView],
        unready: Collection[Probe] = (),
    ) -> None:
        """Run due probes. From here on every process makes the same calls, whatever has happened to this one.

        Args:
            due: Probes, the same in every process.
            step: The step, the same in every process.
            batch: This process's batch.
            source: Makes the source of the loss.
            build: Makes the view.
            unready: Those among `due` that have not seen the weights before the update: none does then.
        """
        peers = self._runner.agenda.peers
        if peers is None:
            return
        view, obstacle = None, PeerFailed("it has stopped measuring after failures of its own")
        if self._guard.open:
            try:
                view = build(peers)
            except Exception as error:  # noqa: BLE001 (told to the others, and recorded)
                obstacle = PeerFailed(f"{type(error).__name__}: {error}")

        def told() -> Source:
            raise obstacle

        with self._guard:
            evaluating = [probe for probe in due if replays(probe)]
            if evaluating:
                self._replays.may_run_together(evaluating, step, batch, told if view is None else source, peers)
        for probe in due:
            with self._guard:
                if probe.name in self._runner.agenda.gone:
                    continue
                if not self._runner.health.well(probe.name):
                    self._runner.absent(probe, step, PeerFailed("the probe is switched off there"))
                elif view is None:
                    self._runner.absent(probe, step, obstacle)
                elif probe in unready:
                    self._runner.absent(probe, step, Skip("the weights before the update were not seen"))
                else:
                    self._runner.measure(probe, view)
        if not self._guard.open:  # nobody hands over what is recorded here
            with self._guard:
                self._runner.flush()


def _signature(shared: Sequence[Probe]) -> str:
    """Say what these probes do together with other processes: all must do the same at the same steps."""
    plain = (int, float, str, bool, type(None))
    settings = [
        sorted((k, v) for k, v in vars(probe).items() if isinstance(v, plain) and k[0] != "_") for probe in shared
    ]
    return repr([(type(probe).__name__, repr(probe.schedule), s) for probe, s in zip(shared, settings, strict=True)])
