"""One measurement before one law. A law that fails is a finding about the law, never an exception in the collector."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from learnmech.collector.judging.force import Force, Record
from learnmech.laws import Judgement, Law, Point, Prediction, State, Verdict, judge


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of one law at one step of one scope.

    Attributes:
        law: The law.
        scope: The scope.
        attempt: The attempt that measured.
        point: Measured beside predicted.
        judgement: The verdict.
        failure: What the law did wrong, '' as a rule.
    """

    law: Law
    scope: str
    attempt: int
    point: Point
    judgement: Judgement
    failure: str = ""


class LawFailed(Exception):
    """A law raised, or returned what is no prediction or judgement."""


def examine(
    law: Law, records: Sequence[Record], force: Force, context: dict[str, object], history: Sequence[Point]
) -> Finding | None:
    """Judge what was measured in one scope at one step.

    Args:
        law: The law.
        records: What was measured, one record per observable of `law.measures`, in their order. The first that the law
            takes for its gauge counts.
        force: The values in force.
        context: What the attempt said of itself.
        history: The earlier points of the law in this scope, oldest first.

    Returns:
        The finding, or None when none of the records is the law's gauge in this run.
    """
    for record in records:
        scope = record.key[1]
        state = State(record.key[0], record.step, scope, force.seen_by(law, scope), context)
        point = Point(record.step, record.value, record.stderr, status=record.status)
        try:
            prediction = _predict(law, state)
            if prediction is None:
                continue
            point = replace(
                point,
                predicted=prediction.value,
                predicted_stderr=prediction.stderr,
                not_applicable=prediction.not_applicable,
                note=prediction.note,
                band=prediction.band,
            )
            return Finding(law, scope, record.attempt, point, _judge(law, point, history))
        except LawFailed as error:
            reason = f"The law itself failed: {error}."
            point = replace(point, predicted=None, predicted_stderr=None, not_applicable=reason)
            judgement = Judgement(Verdict.NOT_APPLICABLE, reason)
            return Finding(law, scope, record.attempt, point, judgement, failure=str(error))
    return None


def _predict(law: Law, state: State) -> Prediction | None:
    try:
        prediction: object = law.predict(state)
    except Exception as error:  # laws may come from other distributions; whatever they raise is a finding
        raise LawFailed(f"predict raised {type(error).__name__}: {error}") from error
    if prediction is None:
        return None
    if not isinstance(prediction, Prediction):
        raise LawFailed(f"predict returned {prediction!r:.100}; expected a learnmech.laws.Prediction")
    for name, number in (("value", prediction.value), ("stderr", prediction.stderr)):
        if number is not None and not isinstance(number, int | float):
            raise LawFailed(f"predict returned a {name} of {number!r:.100}; expected a number")
    if prediction.value is None and not prediction.not_applicable:
        raise LawFailed("predict returned neither a value nor a reason why the law does not apply")
    return prediction


def _judge(law: Law, point: Point, history: Sequence[Point]) -> Judgement:
    try:
        judgement: object = judge(law, point, history)
    except Exception as error:  # a law's own band or window may be what breaks the protocol
        raise LawFailed(f"judging raised {type(error).__name__}: {error}") from error
    if not isinstance(judgement, Judgement):
        raise LawFailed(f"judging returned {judgement!r:.100}; expected a learnmech.laws.Judgement")
    return judgement


def finite(number: float | None) -> float | None:
    """Return a number that a column for curves can hold, None for NaN and infinities."""
    return None if number is None or not math.isfinite(number) else float(number)
