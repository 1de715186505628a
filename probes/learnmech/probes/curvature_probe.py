"""What every probe of curvature does alike: products by the best method, smaller parts after running out of memory."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from learnmech.observables import Status
from learnmech.probes.curvature import Choice, NonFinite, Operator, Unmeasurable
from learnmech.probes.curvature.operators.choice import DIFFERENCES, EXACT
from learnmech.probes.curvature.processes import operator_of
from learnmech.probes.isolation import PureLoss, Refusal
from learnmech.probes.pieces import split
from learnmech.probes.probe import BaseProbe, TrainingView
from learnmech.probes.schedule import Schedule
from learnmech.wire import Measurement

PATIENCE = 3
"""Measurements in a row without usable products after which there will be none."""

FINER = 4
"""After running out of memory the batch is taken in so many times more parts, one graph at a time: four need no more
memory than a training step, where the whole batch needs three times as much (small transformer and CNN)."""


class CurvatureProbe(BaseProbe):
    """Measures something that needs products with the Hessian. A subclass defines `measured`.

    When memory runs out, the batch is taken in parts from then on (with batch norm in training mode that is another
    function: `method` says so).

    Args:
        schedule: When to measure, such as `every(20)`; None leaves it to the budget.
        batch: A fixed batch to measure on, instead of the current one.
        method: How to come by products: `auto`, or one of the methods of `learnmech.probes.curvature.Choice`.
        name: Name, if there are two probes of this class.
    """

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
        self._told = ""
        self._unsupported = 0
        self._parts = 1

    def measured(self, loss: PureLoss, view: TrainingView) -> list[Measurement]:
        """Measure on a pure loss at the weights of `view`; the first measurement tells whether it was possible."""
        raise NotImplementedError(f"{type(self).__name__} does not define measured(loss, view)")

    def measure(self, view: TrainingView) -> list[Measurement]:
        """Measure at the weights and batch of `view`.

        Raises:
            Refusal: There are no usable products.
            OutOfMemoryError: There is not enough memory; the next measurement needs less.
        """
        try:
            # differences were asked for because training's own kernels are to be used
            measurements = view.isolate(lambda loss: self.measured(loss, view), twice=self.method != DIFFERENCES)
        except torch.OutOfMemoryError:
            self._parts *= FINER  # next time
            raise
        except (Unmeasurable, NonFinite) as error:
            status = Status.NON_FINITE if isinstance(error, NonFinite) else Status.UNSUPPORTED
            measurements = [Measurement(name, None, status=status, reason=str(error)) for name in self.observables]
        self.uses += 1
        first = measurements[0] if measurements else None
        unsupported = first is not None and first.status is Status.UNSUPPORTED
        self._unsupported = self._unsupported + 1 if unsupported else 0
        if first is not None and self._unsupported >= PATIENCE:
            raise Refusal(first.reason)
        return measurements

    def notice(self) -> str:
        """Return why a better method was passed over, once."""
        earlier, self._told = self._told, self._choice.reason
        return self._told if self._told != earlier else ""

    def batch_of(self, view: TrainingView) -> Any:
        """Return the batch to measure on."""
        return view.batch if self.batch is None else self.batch

    def parts(self, batch: Any) -> list[Any]:
        """Return the batch in as many parts as memory asks for."""
        return [batch] if self._parts == 1 else split(batch, self._parts)

    def operator(self, loss: PureLoss, batch: Any, scale: Sequence[Tensor] | None = None) -> Operator:
        """Return the Hessian of the loss on a batch, S H S if a scale is given, by the method that works."""
        return operator_of(loss, self.parts(batch), self._choice, scale=scale, retain=self._parts == 1)

    def method_of(self, operator: Operator) -> str:
        """Return how a number came about, as it is recorded."""
        return operator.method if self._parts == 1 else f"{operator.method}_in_{self._parts}_parts"
