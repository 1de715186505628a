"""The change of the loss by one update, beside what its gradient and its Hessian predict."""

import math
from typing import ClassVar

from learnmech.observables import Status
from learnmech.probes.curvature import NonFinite, Unmeasurable
from learnmech.probes.curvature.stability import (
    AppliedUpdate,
    QuadraticModel,
    Rounding,
)
from learnmech.probes.isolation import PureLoss
from learnmech.probes.probe import TrainingView
from learnmech.probes.update_probe import UpdateProbe
from learnmech.wire import Measurement

MODELLED = ("loss_change_linear", "loss_change_predicted", "update_sharpness", "curvature_share")
"""What rests on the quadratic model at w_t."""

NO_UPDATE = "the update is zero: the weights have not moved"


class LossChange(UpdateProbe):
    """Measures `loss_change` and what the local quadratic model says of it.

    With s = w_(t+1) - w_t as the optimizer applied it (momentum, weight decay, clipping and all), and loss L, gradient
    G and Hessian H at w_t of the batch that produced it:

    - `loss_change`: L(w_t + s) - L(w_t);
    - `loss_change_linear`: G's;
    - `loss_change_predicted`: G's + s'Hs / 2;
    - `update_sharpness`: s'Hs / s's, between the smallest and the largest eigenvalue of H;
    - `curvature_share`: s'Hs / (2 |G's|): at 1 the curvature takes all of the linear gain back. For plain descent,
      s = -eta G, it is eta/2 times the batch sharpness; it holds for any optimizer.

    All are on one function: the same batch, random numbers (which training would draw next: the masks of dropout are
    not those that the update saw) and buffers. With several processes it is the loss over the batches of all of them.
    With accumulated gradients the batch at hand is only a part of what the update was made from, and `method` says so
    (`..._on_8_of_32_examples`): the numbers are right for this part, but s does not follow its gradient alone.

    Error bars: of `loss_change` the rounding of two losses, as measured by their scatter; of the others the rounding of
    gradients and products, or the error that differences of gradients state of themselves. What the quadratic
    model leaves out is no error of it: it is `loss_change` - `loss_change_predicted`, which falls as |s|^3.

    Costs two forward passes, one gradient and one product on its graph: about five gradients, four with differences.
    Memory: one copy of the weights from before the update until the measurement, and two vectors of their size.

    Args:
        schedule: When to measure, such as `every(50)`; None leaves it to the budget.
        batch: A fixed batch to measure on, instead of that of the update.
        method: How to come by products: `auto`, or one of the methods of `learnmech.probes.curvature.Choice`.
        name: Name, if there are two probes of this class.

    References:
        McCandlish et al. 2018, arXiv 1812.06162, section 2.2, for plain descent.
    """

    default_name: ClassVar[str] = "loss_change"
    observables: ClassVar[tuple[str, ...]] = ("loss_change", *MODELLED)

    def reset(self) -> None:
        """Forget the rounding of an earlier run."""
        super().reset()
        self._rounding = Rounding()

    def measured(self, loss: PureLoss, view: TrainingView) -> list[Measurement]:
        """Measure on a pure loss at w_(t+1), with w_t held."""
        applied = self.applied(loss, view)
        if float(applied.before.space.norm(applied.step)) == 0.0:
            return [_without(name, Status.UNDETERMINED, NO_UPDATE) for name in self.observables]
        before, after = (float(objective.loss_along()) for objective in (applied.before, applied.after))
        if not math.isfinite(before):
            reason = f"the loss before the update is {before}"
            return [_without(name, Status.NON_FINITE, reason) for name in self.observables]
        where = self.where(view)
        error = math.sqrt(2) * self._rounding.of(applied.before, before)
        return [_actual(after - before, error, f"forwards{where}"), *self._modelled(applied, where)]

    def _modelled(self, applied: AppliedUpdate, where: str) -> list[Measurement]:
        try:
            model, method = self.quadratic(applied.before, applied.step)
        except Unmeasurable as error:
            return [_without(name, Status.UNSUPPORTED, str(error)) for name in MODELLED]
        except NonFinite as error:
            return [_without(name, Status.NON_FINITE, str(error)) for name in MODELLED]
        if not model.finite:
            reason = "the gradient or a Hessian-vector product is NaN or infinite"
            return [_without(name, Status.NON_FINITE, reason) for name in MODELLED]
        return _numbers(model, method + where)


def _without(observable: str, status: Status, reason: str) -> Measurement:
    return Measurement(observable, None, status=status, reason=reason)


def _actual(change: float, error: float, method: str) -> Measurement:
    if not math.isfinite(change):
        reason = "the loss after the update is NaN or infinite"
        return Measurement("loss_change", None, status=Status.NON_FINITE, reason=reason, method=method)
    return Measurement("loss_change", change, stderr=error if math.isfinite(error) else None, method=method)


def _numbers(model: QuadraticModel, method: str) -> list[Measurement]:
    found = [
        Measurement("loss_change_linear", model.slope, stderr=model.slope_error, method=method),
        Measurement("loss_change_predicted", model.change, stderr=model.change_error, method=method),
        Measurement("update_sharpness", model.sharpness, stderr=model.sharpness_error, method=method),
    ]
    if model.slope < 0.0:
        share = Measurement("curvature_share", model.share, stderr=model.share_error, method=method)
    else:
        reason = "the update does not point downhill on its batch: there is no linear gain"
        share = _without("curvature_share", Status.UNDETERMINED, reason)
    return [*found, share]
