"""Batch sharpness: curvature of each batch along its own gradient, averaged over batches."""

import math
from collections import deque
from typing import Any, ClassVar

from learnmech.observables import Status
from learnmech.probes.arguments import whole
from learnmech.probes.curvature import NonFinite, Unmeasurable
from learnmech.probes.curvature.stability import QuadraticModel
from learnmech.probes.curvature.statistics.interval import error_of_mean
from learnmech.probes.isolation import PureLoss
from learnmech.probes.probe import TrainingView
from learnmech.probes.schedule import Schedule
from learnmech.probes.update_probe import UpdateProbe
from learnmech.wire import Measurement

ENOUGH = 3
"""Measurements from which on their scatter is an error bar: of two it has one degree of freedom, t(95 %) = 12.7."""


class BatchSharpness(UpdateProbe):
    """Measures `batch_sharpness`, and its parts `batch_curvature` and `batch_grad_sq_norm` of one batch.

    With the gradient g and the Hessian H of the loss of a batch B, both at the same weights,

        batch_sharpness = mean over batches of g'Hg / g'g,   batch_curvature = g'Hg,   batch_grad_sq_norm = g'g.

    In minibatch training it is this, not the largest eigenvalue, that settles at 2/eta. One batch per measurement; the
    mean is over the last `window` measurements, each at its own weights; while there are fewer, `reason` says how many.
    `stderr` is from their scatter, such that the mean plus or minus 1.96 of it covers 95 %: the quotients are few, have
    a long tail, and neighbours are correlated (`learnmech.probes.curvature.statistics.interval`). Below three
    measurements the status is `undetermined`. The ratio of the means of the two parts is another average, 1 to 8 %
    apart; it can be formed from what is stored.

    The batch is that of an update, at the weights before it. At the weights after it the number is another one: 47 %
    too small on a network with random labels near the end of its training (batches of 16 out of 512 examples), and
    still 32 % too small for a batch that was used 20 steps ago. Under data parallelism the batch that the optimizer
    uses is the union of those of all processes, and so is B here. With accumulated gradients the batch at hand is only
    a part of that of the update, and `method` says so: batch sharpness depends on batch size.

    Costs one gradient and one product on its graph: about four gradients, five with differences. Memory: one copy of
    the weights from before the update until the measurement, the graph of one double backward, and two vectors of
    the weights' size.

    Args:
        schedule: When to measure, such as `every(20)`; None leaves it to the budget.
        window: Measurements that `batch_sharpness` averages over.
        batch: A fixed batch to measure on: then it is the curvature of that batch alone.
        method: How to come by products: `auto`, or one of the methods of `learnmech.probes.curvature.Choice`.
        name: Name, if there are two probes of this class.

    References:
        Andreyev & Beneventano 2024, arXiv 2412.20553; with momentum: arXiv 2604.14108.
    """

    default_name: ClassVar[str] = "batch_sharpness"
    observables: ClassVar[tuple[str, ...]] = ("batch_curvature", "batch_grad_sq_norm", "batch_sharpness")

    def __init__(
        self,
        schedule: Schedule | None = None,
        *,
        window: int = 16,
        batch: Any = None,
        method: str = "auto",
        name: str | None = None,
    ) -> None:
        self.window = whole(self, "window", window, ENOUGH, 16)
        super().__init__(schedule, batch=batch, method=method, name=name)

    def reset(self) -> None:
        """Forget the window of an earlier run."""
        super().reset()
        self._quotients: deque[tuple[float, float]] = deque(maxlen=self.window)

    def measured(self, loss: PureLoss, view: TrainingView) -> list[Measurement]:
        """Measure on a pure loss at w_(t+1), with w_t held."""
        try:
            model, method = self.quadratic(self.applied(loss, view).before)
        except Unmeasurable as error:
            return self.nothing(Status.UNSUPPORTED, str(error))
        except NonFinite as error:
            return self.nothing(Status.NON_FINITE, str(error))
        if not model.finite:
            return self.nothing(Status.NON_FINITE, "the gradient or a Hessian-vector product is NaN or infinite")
        method += self.where(view)
        return [
            Measurement("batch_curvature", model.curvature, stderr=model.curvature_error, method=method),
            Measurement("batch_grad_sq_norm", model.square, method=method),
            self._mean(model, method),
        ]

    def _mean(self, model: QuadraticModel, method: str) -> Measurement:
        """Return the mean over the window with its standard error."""
        if model.square > 0.0:
            self._quotients.append((model.sharpness, model.sharpness_error))
        n = len(self._quotients)
        if n == 0:
            reason = "the gradient is zero"
            return Measurement("batch_sharpness", None, status=Status.UNDETERMINED, reason=reason)
        values = [value for value, _ in self._quotients]
        mean = math.fsum(values) / n
        method = f"{method}_window_of_{self.window}"
        if n < ENOUGH:
            reason = f"{n} of at least {ENOUGH} measurements: there is no error bar yet"
            return Measurement("batch_sharpness", mean, status=Status.UNDETERMINED, reason=reason, method=method)
        # products that are off are off alike in every measurement: their error does not average out
        error = math.hypot(error_of_mean(values), max(error for _, error in self._quotients))
        reason = "" if n == self.window else f"the mean of the first {n} measurements"
        return Measurement("batch_sharpness", mean, stderr=error, reason=reason, method=method)
