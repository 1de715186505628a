"""The verdict protocol, the same for every law: gate, pool, error bar, equivalence, debounce.

A point-null test repeated as a run goes on always alarms in the end, even on a perfectly lawful run. So a law is
tested for
*equivalence*: it holds when the whole confidence interval of measured/predicted lies inside its band, and deviates only
when the interval lies outside at `LOOKS` looks in a row.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from learnmech.laws.law import Band, Law
from learnmech.laws.statistics import Interval, ratio_of_means
from learnmech.laws.verdict import Verdict
from learnmech.observables import Error, Status, get

LOOKS = 3
"""Looks in a row that must lie outside the band before `deviates` is said: brought false alarms of a law that "
"is nearly at
its band from 10.8 % to 2.2 % in simulation."""

SAME_PREDICTION = 0.05
"""Points are pooled while the prediction stays within this relative distance of the newest one: a slow schedule is
followed, a step in the learning rate starts afresh."""

_Z_975 = 1.96


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement beside its prediction.

    Attributes:
        step: The step measured at.
        measured: The measured value.
        measured_stderr: Its error bar.
        predicted: The predicted value; None when the law does not apply.
        predicted_stderr: Its error bar, None when the prediction follows from hyperparameters alone.
        status: Status of the measurement.
        not_applicable: Why the law does not apply; empty when it does.
        note: What went into the prediction.
        band: The band that applies if it is not the law's own.
    """

    step: int
    measured: float | None
    measured_stderr: float | None = None
    predicted: float | None = None
    predicted_stderr: float | None = None
    status: Status = Status.OK
    not_applicable: str = ""
    note: str = ""
    band: Band | None = None

    @property
    def usable(self) -> bool:
        """Tell whether both numbers are there, finite, and the prediction positive."""
        return (
            not self.not_applicable
            and self.measured is not None
            and math.isfinite(self.measured)
            and self.predicted is not None
            and math.isfinite(self.predicted)
            and self.predicted > 0.0
            and self.status in (Status.OK, Status.NOT_CONVERGED)
        )


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict on one point.

    Attributes:
        verdict: The verdict.
        reason: One sentence with the numbers in it.
        ratio: measured/predicted of this very point, None when there is none.
        lower: The band's lower end in the measured observable's unit.
        upper: The band's upper end in the measured observable's unit.
    """

    verdict: Verdict
    reason: str
    ratio: float | None = None
    lower: float | None = None
    upper: float | None = None


def judge(law: Law, point: Point, history: Sequence[Point] = ()) -> Judgement:
    """Judge the newest point of a law in the light of the ones before it.

    Args:
        law: The law.
        point: The newest point.
        history: Up to `law.window + LOOKS` earlier points of the same run and scope, oldest first. More are ignored.
    """
    if point.not_applicable:
        return Judgement(Verdict.NOT_APPLICABLE, point.not_applicable)
    band = point.band or law.band
    if not point.usable:
        return Judgement(Verdict.UNDETERMINED, _unusable(point))
    if point.measured is None or point.predicted is None:  # `usable` says so already; this tells the type checker
        return Judgement(Verdict.UNDETERMINED, _unusable(point))
    ratio, lower, upper = point.measured / point.predicted, band.lower * point.predicted, band.upper * point.predicted
    pool = _pool(law, point, history)
    interval = _interval(law, pool)
    verdict, reason = _decide(law, band, interval, pool)
    if verdict is Verdict.DEVIATES:
        outside = _looks_outside(law, band, point, history)
        if outside < LOOKS:
            verdict = Verdict.UNDETERMINED
            reason = f"{reason}; outside at {outside} look{'s' * (outside != 1)} in a row, {LOOKS} make it a deviation"
    return Judgement(verdict, f"{reason}. {point.note}".rstrip(" .") + ".", ratio, lower, upper)


def _unusable(point: Point) -> str:
    if point.status not in (Status.OK, Status.NOT_CONVERGED):
        return f"The measurement at step {point.step} has status {point.status}: {point.status.sentence}"
    if point.measured is None or not math.isfinite(point.measured):
        return f"The measurement at step {point.step} is not a finite number."
    return f"The prediction at step {point.step} is not a positive finite number."


def _pool(law: Law, point: Point, history: Sequence[Point]) -> list[Point]:
    """Collect the newest points that may be averaged: applicable without a break, under the same prediction."""
    pool = [point]
    for earlier in reversed(history):
        if len(pool) == law.window or not earlier.usable or not _same_prediction(point, earlier):
            break
        pool.append(earlier)
    return pool[::-1]


def _same_prediction(newest: Point, earlier: Point) -> bool:
    """Tell whether two predictions count as one; predictions made of noisy measurements always do."""
    if newest.predicted_stderr is not None or newest.predicted is None or earlier.predicted is None:
        return True
    return abs(earlier.predicted / newest.predicted - 1.0) <= SAME_PREDICTION


def _interval(law: Law, pool: Sequence[Point]) -> Interval:
    """Return the interval of measured/predicted over the pool; one point has only its own error bars."""
    measured = [point.measured or 0.0 for point in pool]
    predicted = [point.predicted or 0.0 for point in pool]
    errors = [point.measured_stderr or 0.0 for point in pool]
    if len(pool) > 1:
        # A solver's residual neither shows in the scatter nor averages away; a standard error does both.
        floor = math.fsum(errors) / len(pool) if get(law.measures[0]).error is Error.RESIDUAL else 0.0
        return ratio_of_means(measured, predicted, floor=floor)
    center = measured[0] / predicted[0]
    relative = math.hypot(errors[0] / predicted[0], center * (pool[0].predicted_stderr or 0.0) / predicted[0])
    return Interval(center, center - _Z_975 * relative, center + _Z_975 * relative)


def _decide(law: Law, band: Band, interval: Interval, pool: Sequence[Point]) -> tuple[Verdict, str]:
    words = _words(interval, pool)
    if law.one_sided and _all_below(band, interval, pool):
        return Verdict.SUB_EDGE, f"{words}, below the band from {band.lower:g} to {band.upper:g}"
    if len(pool) < law.minimum:
        return Verdict.UNDETERMINED, (
            f"{words}; {len(pool)} of the {law.minimum} measurements that a verdict takes since the prediction "
            f"last changed"
        )
    if not interval.bounded:
        return Verdict.UNDETERMINED, "The denominator is not resolved from zero: no ratio can be formed"
    if band.lower <= interval.lower and interval.upper <= band.upper:
        return Verdict.HOLDS, f"{words}, inside the band from {band.lower:g} to {band.upper:g}"
    if interval.upper < band.lower or interval.lower > band.upper:
        side = "below" if interval.upper < band.lower else "above"
        return Verdict.DEVIATES, f"{words}, {side} the band from {band.lower:g} to {band.upper:g}"
    return Verdict.UNDETERMINED, f"{words}, which overlaps an end of the band from {band.lower:g} to {band.upper:g}"


def _all_below(band: Band, interval: Interval, pool: Sequence[Point]) -> bool:
    """Tell whether a one-sided law is below its edge now: by the interval, or on the way up by the newest points alone.

    A climbing series has no stationary mean, so its interval is wide although every single point is below.
    """
    newest = pool[-LOOKS:]
    below = all((point.measured or 0.0) < band.lower * (point.predicted or 0.0) for point in newest)
    return interval.upper < band.lower or (below and interval.center < band.lower)


def _words(interval: Interval, pool: Sequence[Point]) -> str:
    count = f"over {len(pool)} measurements" if len(pool) > 1 else "at one measurement"
    return (
        f"Measured/predicted is {interval.center:.3g} (95 % interval {interval.lower:.3g} to "
        f"{interval.upper:.3g}) {count}"
    )


def _looks_outside(law: Law, band: Band, point: Point, history: Sequence[Point]) -> int:
    """Count how many of the last looks in a row, the newest included, lay outside the band."""
    everything = [*history, point]
    for look in range(LOOKS):
        newest = everything[len(everything) - 1 - look] if look < len(everything) else None
        if newest is None or not newest.usable:
            return look
        pool = _pool(law, newest, everything[: len(everything) - 1 - look])
        if _decide(law, band, _interval(law, pool), pool)[0] is not Verdict.DEVIATES:
            return look
    return LOOKS
