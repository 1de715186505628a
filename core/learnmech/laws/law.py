"""What a law is: a pure function from recorded numbers to a prediction, with a band inside which it counts as true."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from learnmech.laws.verdict import Verdict
from learnmech.observables import Status


@dataclass(frozen=True, slots=True)
class Band:
    """The tolerance of a law: laws are approximate, so they are tested for equivalence, not against a point.

    Attributes:
        lower: Smallest measured/predicted at which the law still counts as true.
        upper: Largest.
        origin: Where the two numbers come from.
    """

    lower: float
    upper: float
    origin: str


@dataclass(frozen=True, slots=True)
class Value:
    """The value of one observable in force at a step.

    Attributes:
        value: The number, or None if the last record had none.
        stderr: Its error bar, if it has one.
        step: The step of the record.
        since: First step from which the value has been the same without a break: what gates equilibrium laws.
        status: Status of the record.
    """

    value: float | None
    stderr: float | None = None
    step: int = 0
    since: int = 0
    status: Status = Status.OK


@dataclass(frozen=True, slots=True)
class State:
    """Everything a law may look at when it predicts.

    Attributes:
        observable: The measured observable that is to be predicted.
        step: The step of that measurement.
        scope: Its scope.
        values: The value in force at or before `step`, for each observable of the law's `needs` and `uses` that has
            one; in
            the measurement's scope, else in scope `''`.
        context: What the run said of itself (`RunInfo.context`): optimizer class, precision, clipping.
    """

    observable: str
    step: int
    scope: str = ""
    values: Mapping[str, Value] = field(default_factory=dict)
    context: Mapping[str, Any] = field(default_factory=dict)

    def get(self, name: str) -> float | None:
        """Return the number in force, None when it was never recorded or has no number."""
        found = self.values.get(name)
        return None if found is None else found.value

    def since(self, name: str) -> int:
        """Return the step from which the value in force has been unchanged, 0 when it was never recorded."""
        found = self.values.get(name)
        return 0 if found is None else found.since


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a law says of one measurement.

    Attributes:
        value: The predicted number, in the measured observable's unit; None when the law does not apply.
        stderr: Its error bar when the prediction itself rests on noisy measurements.
        not_applicable: Why the law does not apply; empty when it does.
        note: What went into the prediction, as a clause for the reason: `2/eta at eta = 0.4 since step 0`.
        band: A band other than the law's own, where the tolerance depends on the optimizer.
    """

    value: float | None = None
    stderr: float | None = None
    not_applicable: str = ""
    note: str = ""
    band: Band | None = None


def not_applicable(reason: str) -> Prediction:
    """Return the prediction of a law that does not apply, with the reason for a person to read."""
    return Prediction(not_applicable=reason)


class Law(ABC):
    """A falsifiable prediction of learning mechanics.

    Attributes:
        name: Identifier, stable: dashboards and SQL rely on it.
        title: A heading.
        statement: The law in LaTeX.
        reference: Paper and equation.
        version: Raised whenever a change alters verdicts; stored with each of them.
        measures: Observables that the law predicts; a run records one of them as the law's gauge.
        needs: Observables without which there is no prediction.
        uses: Observables that sharpen the prediction, its preconditions or its reason.
        band: The tolerance on measured/predicted.
        window: How many measurements the verdict looks back on.
        minimum: How many measurements under an unchanged prediction it takes to say `holds` or `deviates`.
        one_sided: True if values below the band are lawful (`sub_edge`).
        advice: What a practitioner does about each verdict.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    statement: ClassVar[str]
    reference: ClassVar[str]
    version: ClassVar[int] = 1
    measures: ClassVar[tuple[str, ...]]
    needs: ClassVar[tuple[str, ...]]
    uses: ClassVar[tuple[str, ...]] = ()
    band: ClassVar[Band]
    window: ClassVar[int] = 10
    minimum: ClassVar[int] = 5
    one_sided: ClassVar[bool] = False
    advice: ClassVar[Mapping[Verdict, str]]

    @abstractmethod
    def predict(self, state: State) -> Prediction | None:
        """Predict the measurement that `state` describes; a pure function, never raising for any recorded number.

        Returns:
            The prediction, or None when this observable is not the law's gauge in this run (raw sharpness under Adam).
        """
