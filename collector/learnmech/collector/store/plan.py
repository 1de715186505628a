"""From a batch to rows: what is stored, what is refused and why. No database in here."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from learnmech.collector.store.codes import STATUS, non_finite_code
from learnmech.collector.store.engine import clean
from learnmech.observables import MAX_NAME_LENGTH, Status, UnknownObservable, is_declared
from learnmech.wire import Batch, Frame, Measurement, Rejection

MAX_SERIES = 10_000
"""Most series (observable, scope, attempt) of one run: a name with a counter in it would otherwise eat the store."""

PointRow = tuple[float | None, float | None, int, int | None, str, float | None, str | None]
"""value, stderr, status, nonfinite, method, cost, reason."""


@dataclass(slots=True)
class Tick:
    """The x axes at one step: the earliest time and the largest counts that any frame gave."""

    time: float
    samples: int | None
    tokens: int | None

    def merge(self, frame: Frame) -> None:
        """Take in another frame of the same step."""
        self.time = min(self.time, frame.time)
        self.samples = _larger(self.samples, frame.samples)
        self.tokens = _larger(self.tokens, frame.tokens)


@dataclass(slots=True)
class Plan:
    """What a batch comes to.

    Attributes:
        points: Rows by series and step.
        ticks: By step.
        frames: The frames that are new, in order of sequence.
        repeated: Measurements of frames that are stored already.
        conflicts: Measurements that another frame of this batch had already given for the same series and step.
        rejected: Measurements not taken, of new and of repeated frames: a lost answer is given again in full.
    """

    points: dict[int, dict[int, PointRow]] = field(default_factory=dict)
    ticks: dict[int, Tick] = field(default_factory=dict)
    frames: list[Frame] = field(default_factory=list)
    repeated: int = 0
    conflicts: int = 0
    rejected: list[Rejection] = field(default_factory=list)


class SeriesOf(Protocol):
    """Gives the number of a series by observable and scope."""

    def __call__(self, key: tuple[str, str], *, make: bool) -> int | None:
        """Return the number, made if need be and wanted; None when there is none."""


def make(batch: Batch, is_new: Callable[[int], bool], series_of: SeriesOf) -> Plan:
    """Sort a batch into rows, repetitions and refusals.

    Args:
        batch: The batch.
        is_new: Tells whether the frame of a sequence is not stored yet.
        series_of: Gives the number of a series.
    """
    plan = Plan()
    names: dict[tuple[str, str], str] = {}
    seen: set[int] = set()
    for frame in sorted(batch.frames, key=lambda frame: frame.sequence):
        new = is_new(frame.sequence) and frame.sequence not in seen
        seen.add(frame.sequence)
        if new:
            plan.frames.append(frame)
            if frame.step >= batch.start_step:
                _tick(plan, frame)
        for index, measurement in enumerate(frame.measurements):
            key = (measurement.observable, measurement.scope)
            reason = names.get(key)
            if reason is None:
                reason = names[key] = _wrong_name(key)
            reason = (
                reason or _objection(measurement, frame.step, batch) or _take(plan, frame, measurement, new, series_of)
            )
            if reason:
                plan.rejected.append(Rejection(frame.sequence, index, measurement.observable, reason))
    return plan


def _take(plan: Plan, frame: Frame, measurement: Measurement, new: bool, series_of: SeriesOf) -> str:
    """Take a good measurement into the plan; return why not, '' if it was taken."""
    number = series_of((measurement.observable, measurement.scope), make=new)
    if number is None:
        return (
            f"the run has {MAX_SERIES} series already, so {measurement.observable!r} in scope {measurement.scope!r} "
            "cannot be added; expected few names with many steps: put what counts up into the step, not into the scope"
        )
    if not new:
        plan.repeated += 1
        return ""
    steps = plan.points.setdefault(number, {})
    if frame.step in steps:
        plan.conflicts += 1
    else:
        steps[frame.step] = _row(measurement)
    return ""


def _wrong_name(key: tuple[str, str]) -> str:
    """Return what is wrong with the names of a measurement, '' if nothing is."""
    observable, scope = key
    if not is_declared(observable):
        return str(UnknownObservable(observable))
    for what, name in (("observable", observable), ("scope", scope)):
        if len(name) > MAX_NAME_LENGTH:
            return f"the {what} has {len(name)} characters; expected at most {MAX_NAME_LENGTH}"
        if not name.isprintable():
            return f"the {what} {name!r} has characters that cannot be printed; expected a parameter's or module's name"
    return ""


def _objection(measurement: Measurement, step: int, batch: Batch) -> str:
    """Return what is wrong with a measurement, '' if nothing is."""
    if step < batch.start_step:
        return f"step {step} lies before step {batch.start_step}, where attempt {batch.attempt} began"
    if measurement.value is None and measurement.status is Status.OK:
        return "status ok without a value; expected a number, or the status that says why there is none"
    if measurement.stderr is not None and measurement.stderr < 0.0:
        return (
            f"stderr is {measurement.stderr!r}; expected a number that is not negative, or null where it is not known"
        )
    if measurement.cost is not None and not 0.0 <= measurement.cost < math.inf:
        return f"cost is {measurement.cost!r}; expected seconds, or null"
    return ""


def _row(measurement: Measurement) -> PointRow:
    value, stderr, status = measurement.value, measurement.stderr, measurement.status
    nonfinite = None if value is None else non_finite_code(value)
    if nonfinite is not None:
        value = None
        # A word that says more (failed, not_converged) is kept.
        status = Status.NON_FINITE if status is Status.OK else status
    if stderr is not None and math.isnan(stderr):
        # An error bar that could not be computed: no law may take the value for exact.
        stderr = math.inf
    return (
        None if value is None else float(value) + 0.0,  # not -0.0, whose sign SQLite loses
        None if stderr is None else float(stderr),
        STATUS[status],
        nonfinite,
        measurement.method,
        measurement.cost,
        clean(measurement.reason) or None,
    )


def _tick(plan: Plan, frame: Frame) -> None:
    tick = plan.ticks.get(frame.step)
    if tick is None:
        plan.ticks[frame.step] = Tick(frame.time, frame.samples, frame.tokens)
    else:
        tick.merge(frame)


def _larger(first: int | None, second: int | None) -> int | None:
    if first is None or second is None:
        return second if first is None else first
    return max(first, second)
