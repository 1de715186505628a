"""Running one probe: is it due, what does it cost, and what if it fails."""

import logging
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import msgspec
import torch

from learnmech.probes.agenda import Agenda, appetite, replays
from learnmech.probes.budget import Governor
from learnmech.probes.charges import Charges
from learnmech.probes.checked import checked
from learnmech.probes.deadline import within
from learnmech.probes.distributed.failures import error_of, kind_of
from learnmech.probes.health import LIMIT, Health
from learnmech.probes.isolation import Refusal, Skip
from learnmech.probes.isolation.rng import preserved
from learnmech.probes.probe import Moment, Probe, TrainingView
from learnmech.probes.writer import Writer
from learnmech.wire import Measurement, Status

logger = logging.getLogger("learnmech.probes")

TRACE = 4000
"""Characters of a traceback kept in the event of a failure."""


class Runner:
    """Runs probes, charges their cost, and turns their failures into data.

    Args:
        probes: The probes.
        writer: Where measurements and events go.
        governor: Decides about probes without a schedule.
        start_step: First step of this attempt.
        device: Where the model lives.
        foresees: True if a batch is known before the update that it is used for.
        strict: True to raise failures as well; for tests.
    """

    def __init__(
        self,
        probes: Sequence[Probe],
        writer: Writer,
        governor: Governor,
        *,
        start_step: int,
        device: torch.device,
        foresees: bool,
        strict: bool,
    ) -> None:
        self.probes = probes
        self.governor = governor
        self.health = Health()
        self.charges = Charges(governor, device)
        self.agenda = Agenda(probes, governor, self.health, start_step=start_step, foresees=foresees)
        runner = weakref.proxy(self)  # no cycle: what is measured with is let go of at once, not by the collector
        self.agenda.trouble = lambda probe, step, reason: runner.refuse([probe], step, reason)
        self._writer = writer
        self._device = device
        self._strict = strict
        self._unready: dict[str, Exception] = {}
        self._unarmed: dict[str, Exception] = {}
        for probe in probes:
            reset: Callable[[], None] | None = getattr(probe, "reset", None)
            if reset is not None:
                reset()

    def arm(self, probe: Probe, view: TrainingView) -> bool:
        """Let a probe watch the backward passes that come next; tell whether it does."""
        self._unarmed.pop(probe.name, None)
        with self._caught(probe, view.step) as outcome:
            arm: Callable[[TrainingView], None] = getattr(probe, "arm")  # noqa: B009 (not of all probes)
            try:
                with self.charges.of(probe.name, new=False), self._streams(probe):
                    arm(view)
            except Exception as error:
                if isinstance(error, Skip):  # a use: what is always skipped would be tried at every step
                    self.governor.accounts[probe.name].uses += 1
                if not self.agenda.together(probe):
                    raise
                self._unarmed[probe.name] = _told(error)
            outcome.append(True)
        return bool(outcome)

    def tell(self, probe: Probe, what: Callable[[], None]) -> None:
        """Tell a probe what it watches; if it fails at that, so does its measurement, which would lack something."""
        try:
            what()
        except Exception as error:
            if self._strict:
                raise
            self._unarmed[probe.name] = self._unready[probe.name] = _told(error)

    def prepare(self, probe: Probe, view: TrainingView, *, again: bool = False) -> bool:
        """Let a probe look at the weights before an update; tell whether it is ready to measure.

        Args:
            probe: The probe.
            view: The weights w_t and their gradient.
            again: True if it looked at this update before, at an earlier micro-batch.
        """
        self._unready.pop(probe.name, None)
        if probe.name in self._unarmed:
            self._unready[probe.name] = self._unarmed[probe.name]
            return True
        with self._caught(probe, view.step) as outcome:
            prepare: Callable[[TrainingView], None] | None = getattr(probe, "prepare", None)
            try:
                if prepare is not None:
                    with self.charges.of(probe.name, new=not again), self._streams(probe):
                        prepare(view)
            except Exception as error:
                if not self.agenda.together(probe):
                    raise
                # told to the others when they measure; the exception itself would keep tensors alive
                self._unready[probe.name] = _told(error)
            outcome.append(True)
        return bool(outcome)

    def measure(self, probe: Probe, view: TrainingView) -> None:
        """Run a probe and record what it measured, or why it did not."""
        prepared, evaluates = self.agenda.moment_of(probe) is Moment.UPDATE, replays(probe)
        earlier = self.governor.accounts[probe.name].last if prepared else 0.0
        with self._caught(probe, view.step):
            with self._in_step(probe, view.step):
                if probe.name in self._unready:
                    raise self._unready.pop(probe.name)
                # what it has spent in hooks, in the midst of the training's backward pass
                self.governor.charge(probe.name, getattr(probe, "watched", 0.0), new=not prepared)
                limit = within(self.agenda.patience(view.step))
                with self.charges.of(probe.name, new=False) as watch, limit, self._streams(probe):
                    found = list(probe.measure(view))
                self.governor.hungry(probe.name, appetite(probe))
                if found and (evaluates or not prepared):  # others have not read their numbers yet
                    cost = earlier + watch.seconds
                    found.append(Measurement("probe_cost", cost, scope=probe.name))
                    found[0] = msgspec.structs.replace(found[0], cost=cost)
                self._writer.add(view.step, [checked(measurement) for measurement in found])
                self._notice(probe, view.step)
            self.agenda.looked(probe.name, view.step)
            self.health.succeeded(probe.name)

    def absent(self, probe: Probe, step: int, why: Exception) -> None:
        """Tell the other processes, which measure now, why this one does not."""
        with self._caught(probe, step), self._in_step(probe, step):
            raise why

    @contextmanager
    def _in_step(self, probe: Probe, step: int) -> Iterator[None]:
        """Measure in step with the other processes: all succeed or fail, and all know the next step of the probe."""
        peers = self.agenda.peers
        if peers is None or not self.agenda.together(probe):
            yield
            return
        try:
            with peers.together():
                yield
                if probe.schedule is None:
                    self.agenda.agree(probe, step, peers)
        except Skip:  # in every process alike; else they would try again at every step, whatever it costs
            if probe.schedule is None:
                self.agenda.agree(probe, step, peers)
            raise

    def flush(self) -> None:
        """Hand over what was recorded."""
        self._writer.flush()

    def _notice(self, probe: Probe, step: int) -> None:
        """Pass on what a probe has to say once, such as by which method it measures and why not by a better one."""
        notice: Callable[[], str] | None = getattr(probe, "notice", None)
        message = notice() if notice is not None else ""
        if message:
            self._writer.tell("probe_notice", step, f"{probe.name}: {message}", "info", probe=probe.name)
            logger.info("learnmech %s: %s", probe.name, message)

    def costs_of_updates(self) -> list[Measurement]:
        """Return the latest cost of each probe that measures across updates; others record theirs at once."""
        found = []
        for probe in self.probes:
            account = self.governor.accounts[probe.name]
            if self.agenda.moment_of(probe) is Moment.UPDATE and not replays(probe) and account.uses:
                found.append(Measurement("probe_cost", account.last, scope=probe.name))
        return found

    def refuse(self, probes: Sequence[Probe], step: int, reason: str) -> None:
        """Switch probes off that cannot be had, and record why, once."""
        for probe in probes:
            self.agenda.gone.add(probe.name)
            if self.health.well(probe.name):
                self.health.refuse(probe.name, reason)
                self.governor.close(probe.name)
                self._record(probe, step, Status.UNSUPPORTED, reason)
                self._writer.tell("probe_disabled", step, f"{probe.name}: {reason}", "warning", probe=probe.name)
                logger.warning("learnmech cannot measure %s in this run: %s", probe.name, reason)

    def _streams(self, probe: Probe) -> AbstractContextManager[object]:
        """Put the random streams back after a probe of the user's own; ours draw where every stream is put back."""
        ours = type(probe).__module__.startswith("learnmech.")
        return nullcontext() if ours else preserved([self._device])

    @contextmanager
    def _caught(self, probe: Probe, step: int) -> Iterator[list[bool]]:
        """Turn exceptions into data. Ctrl-C and exits pass: they are not of type Exception."""
        failure = ""
        exhausted = False
        try:
            yield []
        except Skip:
            return
        except Refusal as refusal:
            if self._strict:
                raise
            self.refuse([probe], step, str(refusal))
        except Exception as error:
            if self._strict:
                raise
            # the exception itself is not kept: its traceback holds the probe's tensors alive
            failure = f"{type(error).__name__}: {error}"[:500]
            exhausted = isinstance(error, torch.OutOfMemoryError)
            self._fail(probe, step, failure, traceback.format_exc()[-TRACE:])
        if exhausted and self._device.type == "cuda":
            torch.cuda.empty_cache()  # outside the handler, which still refers to the tensors

    def _fail(self, probe: Probe, step: int, reason: str, trace: str) -> None:
        self.agenda.looked(probe.name, step)
        self._record(probe, step, Status.FAILED, reason)
        if probe.name not in self.health.failures:
            logger.warning("learnmech probe %s failed at step %d (training goes on): %s", probe.name, step, reason)
        disabled = self.health.failed(probe.name, reason)
        self._writer.tell("probe_failed", step, f"{probe.name}: {reason}", "warning", probe=probe.name, traceback=trace)
        if self.health.failures[probe.name] >= LIMIT:  # as in every process, whatever has switched it off here
            self.agenda.gone.add(probe.name)
        if disabled:
            self.governor.close(probe.name)
            message = f"{probe.name} failed {LIMIT} times in a row and is disabled: {reason}"
            self._writer.tell("probe_disabled", step, message, "error", probe=probe.name)
            logger.warning("learnmech: %s", message)

    def _record(self, probe: Probe, step: int, status: Status, reason: str) -> None:
        places: Callable[[], Sequence[tuple[str, str]]] | None = getattr(probe, "places", None)
        rows = [(name, "") for name in getattr(probe, "observables", ())] if places is None else places()
        self._writer.add(step, [Measurement(name, None, scope=s, status=status, reason=reason) for name, s in rows])


def _told(error: Exception) -> Exception:
    """Return what the other processes learn of a failure when they measure; the error itself would keep tensors."""
    return error_of(kind_of(error), f"{type(error).__name__}: {error}")
