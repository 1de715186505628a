"""What every probe of curvature does alike: products by the best method, smaller parts after running out of memory."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from learnmech.observables import Status
from learnmech.probes.curvature import Choice, NonFinite, Operator, Unmeasurable
from learnmech.probes.curvature.departures import departures
from learnmech.probes.curvature.objective import Objective
from learnmech.probes.curvature.operators.choice import DIFFERENCES, EXACT, RECHECK
from learnmech.probes.curvature.processes import objective_in, operator_on
from learnmech.probes.isolation import PureLoss, Refusal
from learnmech.probes.pieces import split
from learnmech.probes.probe import BaseProbe, Moment, TrainingView
from learnmech.probes.schedule import Schedule
from learnmech.wire import Measurement

PATIENCE = 3
"""Measurements in a row without usable products after which there will be none."""

FINER = 4
"""After running out of memory the batch is taken in so many times more parts, one graph at a time: four need no more
memory than a training step, where the whole batch needs three times as much (small transformer and CNN)."""


class CurvatureProbe(BaseProbe):
    """Measures something that needs products with the Hessian. A subclass defines `measured`.

    On the batch of the step, at weights that have not seen it: after an update the weights have moved along the
    gradient of its batch, and seen from there its sharpness was 0.82 to 1.03 of what it was. Under Lightning the batch
    is known before the update; a `Recorder` is told afterwards, so that the weights from before are held (one copy) at
    the steps of a measurement. A fixed batch is measured at rest, without a copy.

    When memory runs out, the batch is taken in parts from then on (with batch norm in training mode that is another
    function: `method` says so).

    Args:
        schedule: When to measure, such as `every(20)`; None leaves it to the budget.
        batch: A fixed batch to measure on, instead of the current one.
        method: How to come by products: `auto`, or one of the methods of `learnmech.probes.curvature.Choice`.
        name: Name, if there are two probes of this class.
    """

    moment: ClassVar[Moment] = Moment.UNSEEN
    replays: ClassVar[bool] = True
    methods: ClassVar[tuple[str, ...]] = ("auto", EXACT, DIFFERENCES)
    """Gauss-Newton is another matrix: its numbers are never recorded as those of the Hessian."""
    collective: ClassVar[bool] = True
    """All processes that train the model measure it together, at the same steps."""

    def __init__(
        self, schedule: Schedule | None = None, *, batch: Any = None, method: str = "auto", name: str | None = None
    ) -> None:
        super().__init__(schedule, name=name)
        if method not in self.methods:
            raise ValueError(
                f"{type(self).__name__}(method={method!r}): expected one of {', '.join(map(repr, self.methods))}"
            )
        self.batch = batch
        self.method = method
        self.reset()

    def reset(self) -> None:
        """Forget an earlier run."""
        self.uses = 0
        self._choice = Choice(self.method)
        self._told: list[str] = []
        self._departures = ""
        self._unsupported = 0
        self._parts = 1
        self._held: Mapping[str, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave held weights out of copies and pickles."""
        return self.__dict__ | {"_held": {}}

    def prepare(self, view: TrainingView) -> None:
        """Hold the weights from before the update."""
        self._held = view.hold()

    def places(self) -> list[tuple[str, str]]:
        """List the observables and scopes that numbers of this probe go to."""
        return [(name, "") for name in self.observables]

    def nothing(self, status: Status, reason: str) -> list[Measurement]:
        """Return a measurement without number for every place where a number would have gone."""
        return [Measurement(name, None, scope=scope, status=status, reason=reason) for name, scope in self.places()]

    def measured(self, loss: PureLoss, view: TrainingView) -> list[Measurement]:
        """Measure on a pure loss at the weights of `view`; the first measurement tells whether it was possible."""
        raise NotImplementedError(f"{type(self).__name__} does not define measured(loss, view)")

    def measure(self, view: TrainingView) -> list[Measurement]:
        """Measure on the batch of `view`, at its weights or at held ones, and let go of these.

        Raises:
            Refusal: There are no usable products.
            OutOfMemoryError: There is not enough memory; the next measurement needs less.
        """
        try:
            # differences were asked for because training's own kernels are to be used
            work = self._choice.arithmetic.around(lambda loss: self.measured(loss, view))
            measurements = view.isolate(work, twice=self.method != DIFFERENCES)
        except torch.OutOfMemoryError:
            self._parts *= FINER  # next time
            raise
        except (Unmeasurable, NonFinite) as error:
            status = Status.NON_FINITE if isinstance(error, NonFinite) else Status.UNSUPPORTED
            measurements = self.nothing(status, str(error))
        finally:
            self._held = {}
        if self.uses % RECHECK == 0:
            self._departures = departures(view.model, view.parameters)
        self.uses += 1
        first = measurements[0] if measurements else None
        unsupported = first is not None and first.status is Status.UNSUPPORTED
        self._unsupported = self._unsupported + 1 if unsupported else 0
        if first is not None and self._unsupported >= PATIENCE:
            raise Refusal(first.reason)
        return measurements

    def notice(self) -> str:
        """Return why a better method was passed over, and what else there is to know of the numbers, once."""
        earlier, self._told = self._told, [self._choice.reason, self._choice.arithmetic.reason, self._departures]
        return "; ".join(reason for reason in self._told if reason and reason not in earlier)

    def batch_of(self, view: TrainingView) -> Any:
        """Return the batch to measure on."""
        return view.batch if self.batch is None else self.batch

    def parts(self, batch: Any) -> list[Any]:
        """Return the batch in as many parts as memory asks for."""
        return [batch] if self._parts == 1 else split(batch, self._parts)

    def operator(
        self, loss: PureLoss, batch: Any, scale: Sequence[Tensor] | None = None, choice: Choice | None = None
    ) -> Operator:
        """Return the Hessian of the loss on a batch, S H S if a scale is given, by the method that works."""
        return self.operator_on(objective_in(loss, self.parts(batch), held=self._held), scale, choice)

    def operator_on(
        self, objective: Objective, scale: Sequence[Tensor] | None = None, choice: Choice | None = None
    ) -> Operator:
        """Return the Hessian of an objective, by the method that works."""
        return operator_on(objective, choice or self._choice, scale=scale, retain=self._parts == 1)

    def method_of(self, operator: Operator) -> str:
        """Return how a number came about, as it is recorded."""
        method = operator.method + self._choice.arithmetic.suffix
        return method if self._parts == 1 else f"{method}_in_{self._parts}_parts"
