"""Loss and gradient norm of the updates, at a thin cadence."""

from typing import ClassVar

import torch
from torch import Tensor

from learnmech.probes.estimators.squares import square_sum
from learnmech.probes.probe import BaseProbe, Moment, TrainingView
from learnmech.wire import Measurement


class Vitals(BaseProbe):
    """Records `loss` and `grad_norm`.

    The gradient norm is that of the whole gradient used for the step, before clipping. Both numbers are read back
    without waiting for the device. Part of every run: given explicitly to set its schedule, such as `Vitals(every(1))`.
    """

    default_name: ClassVar[str] = "vitals"
    observables: ClassVar[tuple[str, ...]] = ("loss", "grad_norm")
    moment: ClassVar[Moment] = Moment.UPDATE
    _norm: Tensor | None = None
    _method: str = ""

    def reset(self) -> None:
        """Forget the gradient of an earlier run."""
        self._norm, self._method = None, ""

    def prepare(self, view: TrainingView) -> None:
        """Compute the norm while the gradient is complete."""
        self.reset()
        if view.gradients:
            self._norm, self._method = _norm(view), view.gradient_method

    def measure(self, view: TrainingView) -> list[Measurement]:
        """Hand over what there is of loss and gradient norm."""
        if self._norm is None and view.gradients:
            self._norm, self._method = _norm(view), view.gradient_method
        found: list[tuple[str, Tensor | float, str]] = []
        if view.loss is not None:
            found.append(("loss", view.loss, ""))
        if self._norm is not None:
            found.append(("grad_norm", self._norm, self._method))
        self._norm = None
        measured = [Measurement(name, float(v), method=m) for name, v, m in found if not isinstance(v, Tensor)]
        pending = [(name, v, m) for name, v, m in found if isinstance(v, Tensor)]
        if pending:
            view.defer(
                [value for _, value, _ in pending],
                lambda numbers: [
                    Measurement(name, number, method=method)
                    for (name, _, method), number in zip(pending, numbers, strict=True)
                ],
            )
        return measured


def _norm(view: TrainingView) -> Tensor:
    gradients = [
        g.detach() if g.layout is torch.strided else g.detach().coalesce().values()
        for g in (view.gradients or {}).values()
    ]
    if gradients[0].device.type == "cpu":  # the fused norm loses digits there
        return torch.stack([square_sum(g) for g in gradients]).sum().sqrt() / view.gradient_scale
    return torch.nn.utils.get_total_norm(gradients) / view.gradient_scale
