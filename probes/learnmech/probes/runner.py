"""Running one probe: is it due, what does it cost, and what if it fails."""

import logging
import math
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import torch

from learnmech.observables import get
from learnmech.probes.budget import Governor
from learnmech.probes.distributed import PeerFailed, Peers
from learnmech.probes.health import LIMIT, Health
from learnmech.probes.isolation import Refusal, Skip, Source
from learnmech.probes.isolation.silence import REMEDY
from learnmech.probes.probe import Moment, Probe, TrainingView
from learnmech.probes.self_test import SelfTest, Verdict
from learnmech.probes.stopwatch import Stopwatch
from learnmech.probes.writer import Writer
from learnmech.wire import Measurement, Status

logger = logging.getLogger("learnmech.probes")

SELF_TEST = "self-test"

FARTHEST = 1e6
"""Steps ahead that a measurement is planned at most."""

TRACE = 4000
"""Characters of a traceback kept in the event of a failure."""


def moment_of(probe: Probe) -> Moment:
    """Return when a probe measures; one that does not say so measures at rest."""
    return Moment(getattr(probe, "moment", Moment.AT_REST))


def replays(probe: Probe) -> bool:
    """Tell whether a probe says that it evaluates the loss."""
    return bool(getattr(probe, "replays", False))


class Runner:
    """Runs probes, charges their cost, and turns their failures into data.

    Args:
        probes: The probes.
        writer: Where measurements and events go.
        governor: Decides about probes without a schedule.
        start_step: First step of this attempt.
        device: Where the model lives.
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
        strict: bool,
    ) -> None:
        self.probes = probes
        self.governor = governor
        self.health = Health()
        self.host = 0.0
        """Seconds of host time in probes."""
        self.peers: Peers | None = None
        """The processes that measure together with this one."""
        self._next: dict[str, int] = {}
        self._last: dict[str, tuple[int, float]] = {}
        self._writer = writer
        self._device = device
        self._strict = strict
        self._running: list[tuple[str, float, Stopwatch]] = []
        self._since: dict[str, int] = {}
        self._start_step = start_step
        self._begin = time.perf_counter()
        self._by_moment = {moment: [p for p in probes if moment_of(p) is moment] for moment in Moment}
        for probe in probes:
            # weights at rest are first seen after an update: step 0 is not made up for at step 1
            self._since[probe.name] = start_step if moment_of(probe) is Moment.AT_REST else start_step - 1
            governor.open(probe.name, governed=probe.schedule is None)
            reset: Callable[[], None] | None = getattr(probe, "reset", None)
            if reset is not None:
                reset()

    @property
    def elapsed(self) -> float:
        """Seconds since the attempt began."""
        return time.perf_counter() - self._begin

    def due(self, moment: Moment, step: int) -> list[Probe]:
        """List the probes that are due at a moment of a step."""
        return [probe for probe in self._by_moment[moment] if self._is_due(probe, step)]

    def _is_due(self, probe: Probe, step: int) -> bool:
        if not self.health.well(probe.name):
            return False
        if probe.schedule is None and self.together(probe):
            return self.governor.budget > 0 and step >= self._next.get(probe.name, 0)
        if probe.schedule is not None:
            return probe.schedule.due(step, self._since[probe.name])
        return self.governor.may_run(probe.name, self.elapsed)

    def together(self, probe: Probe) -> bool:
        """Tell whether all processes measure this probe together."""
        wanted = bool(getattr(probe, "collective", False))
        return self.peers is not None and wanted and moment_of(probe) is Moment.AT_REST

    def prepare(self, probe: Probe, view: TrainingView, *, again: bool = False) -> bool:
        """Let a probe look at the weights before an update; tell whether it is ready to measure.

        Args:
            probe: The probe.
            view: The weights w_t and their gradient.
            again: True if it looked at this update before, at an earlier micro-batch.
        """
        with self._caught(probe, view.step) as outcome:
            prepare: Callable[[TrainingView], None] | None = getattr(probe, "prepare", None)
            if prepare is not None:
                with self._charged(probe, new=not again):
                    prepare(view)
            outcome.append(True)
        return bool(outcome)

    def measure(self, probe: Probe, view: TrainingView) -> None:
        """Run a probe and record what it measured, or why it did not."""
        prepared = moment_of(probe) is Moment.UPDATE
        with self._caught(probe, view.step):
            with self._in_step(probe, view.step):
                with self._charged(probe, new=not prepared) as watch:
                    found = list(probe.measure(view))
                if not prepared and found:
                    found.append(Measurement("probe_cost", watch.seconds, scope=probe.name))
                    found[0] = msgspec.structs.replace(found[0], cost=watch.seconds)
                found = [checked(measurement) for measurement in found]
            self._writer.add(view.step, found)
            self._since[probe.name] = view.step
            self.health.succeeded(probe.name)
            self._notice(probe, view.step)

    def absent(self, probe: Probe, step: int) -> None:
        """Tell the other processes, which measure now, that this one does not."""
        with self._caught(probe, step), self._in_step(probe, step):
            raise PeerFailed("it has stopped measuring after failures of its own")

    @contextmanager
    def _in_step(self, probe: Probe, step: int) -> Iterator[None]:
        """Measure in step with the other processes: all succeed or fail, and all know the next step of the probe."""
        peers = self.peers
        if peers is None or not self.together(probe):
            yield
            return
        with peers.together():
            yield
            if probe.schedule is None:  # the first process decides for all: clocks differ
                own = torch.tensor([self._step_allowed(probe.name, step)], dtype=torch.float64)
                self._next[probe.name] = int(peers.first(own))

    def _step_allowed(self, name: str, step: int) -> float:
        """Return the step at which a probe may run again by the budget, if steps take as long as they have taken."""
        now = self.elapsed
        begun, since = self._last.get(name, (self._start_step, self.governor.total))
        self._last[name] = (step, now)
        pace = (now - since) / max(step - begun, 1)
        wait = (self.governor.allowed_from(name) - now) / pace if pace > 0 else 1.0
        return step + max(1.0, min(math.ceil(min(wait, FARTHEST)), FARTHEST))

    def _notice(self, probe: Probe, step: int) -> None:
        """Pass on what a probe has to say once, such as by which method it measures and why not by a better one."""
        notice: Callable[[], str] | None = getattr(probe, "notice", None)
        message = notice() if notice is not None else ""
        if message:
            self._writer.tell("probe_notice", step, f"{probe.name}: {message}", "info", probe=probe.name)
            logger.info("learnmech %s: %s", probe.name, message)

    def arm(self, test: SelfTest, step: int, source: Callable[[], Source], batch: Any) -> Verdict:
        """Make the replay of the self-test; what cannot be replayed fails it, and so do repeated failures.

        Returns:
            How the test stands now.
        """
        try:
            test.arm(source(), batch)
            self.health.succeeded(SELF_TEST)
        except Skip:
            return test.verdict
        except Refusal as refusal:
            test.fail(str(refusal))
        except Exception as error:
            if self._strict:
                raise
            reason = f"{type(error).__name__}: {error}"[:500]
            trace = traceback.format_exc()[-TRACE:]
            self._writer.tell("probe_failed", step, f"self-test: {reason}", "warning", traceback=trace)
            if self.health.failed(SELF_TEST, reason):
                test.fail(f"The training step could not be replayed {LIMIT} times in a row: {reason}. {REMEDY}")
        return test.verdict

    def costs_of_updates(self) -> list[Measurement]:
        """Return the latest cost of each probe that measures across updates; others record theirs at once."""
        found = []
        for probe in self.probes:
            account = self.governor.accounts[probe.name]
            if moment_of(probe) is Moment.UPDATE and account.uses:
                found.append(Measurement("probe_cost", account.last, scope=probe.name))
        return found

    def refuse(self, probes: Sequence[Probe], step: int, reason: str) -> None:
        """Switch probes off that cannot be had, and record why, once."""
        for probe in probes:
            if self.health.well(probe.name):
                self.health.refuse(probe.name, reason)
                self.governor.close(probe.name)
                self._record(probe, step, Status.UNSUPPORTED, reason)
                self._writer.tell("probe_disabled", step, f"{probe.name}: {reason}", "warning", probe=probe.name)
                logger.warning("learnmech cannot measure %s in this run: %s", probe.name, reason)

    def poll(self) -> None:
        """Charge what the device has spent beyond the host time that was charged at once."""
        still = []
        for name, charged, watch in self._running:
            if watch.ready:
                self.governor.correct(name, max(watch.seconds - charged, 0.0))
            else:
                still.append((name, charged, watch))
        self._running = still

    @contextmanager
    def _charged(self, probe: Probe, *, new: bool) -> Iterator[Stopwatch]:
        watch = Stopwatch(self._device)
        try:
            with watch:
                yield watch
        finally:
            self.host += watch.host
            known = watch.ready
            seconds = watch.seconds if known else watch.host
            self.governor.charge(probe.name, seconds, new=new)
            if not known:
                self._running.append((probe.name, seconds, watch))

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
        self._since[probe.name] = step
        self._record(probe, step, Status.FAILED, reason)
        if probe.name not in self.health.failures:
            logger.warning("learnmech probe %s failed at step %d (training goes on): %s", probe.name, step, reason)
        disabled = self.health.failed(probe.name, reason)
        self._writer.tell("probe_failed", step, f"{probe.name}: {reason}", "warning", probe=probe.name, traceback=trace)
        if disabled:
            self.governor.close(probe.name)
            message = f"{probe.name} failed {LIMIT} times in a row and is disabled: {reason}"
            self._writer.tell("probe_disabled", step, message, "error", probe=probe.name)
            logger.warning("learnmech: %s", message)

    def _record(self, probe: Probe, step: int, status: Status, reason: str) -> None:
        names: Sequence[str] = getattr(probe, "observables", ())
        self._writer.add(step, [Measurement(name, None, status=status, reason=reason) for name in names])


def checked(measurement: Measurement) -> Measurement:
    """Return a measurement as it may be recorded: declared, and marked if it is not finite.

    Raises:
        UnknownObservable: The observable is not declared.
    """  # noqa: DOC502 (raised by `get`)
    get(measurement.observable)
    value = measurement.value
    if value is not None and not math.isfinite(value) and measurement.status is Status.OK:
        return msgspec.structs.replace(measurement, status=Status.NON_FINITE)
    return measurement
