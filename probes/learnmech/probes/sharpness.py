"""Sharpness: the largest eigenvalue of the loss Hessian, warm-started from the measurement before."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from learnmech.observables import Status
from learnmech.probes.changes import Changes
from learnmech.probes.curvature import TopEigenvalues, top_eigenvalues_of
from learnmech.probes.curvature.preconditioners import NoPreconditioner, inverse_root, preconditioner_of
from learnmech.probes.curvature_probe import CurvatureProbe
from learnmech.probes.isolation import PureLoss
from learnmech.probes.probe import TrainingView
from learnmech.probes.schedule import Schedule
from learnmech.wire import Measurement

RECHECK = 10
"""Measurements between two looks at what rarely changes: is the loss deterministic (a schedule may switch dropout on),
and does the curvature agree with finite differences."""


class Sharpness(CurvatureProbe):
    """Measures `sharpness`, and `sharpness_preconditioned` where the optimizer preconditions.

    Lanczos on exact Hessian-vector products of the loss on the current batch, in training mode and at the training's
    own randomness; `stderr` is the residual bound |Hv - lambda v|. Each measurement starts from the last eigenvector,
    so that a few products suffice. Beside it: `sharpness_products`, and `deterministic_loss`, which edge laws need.
    When memory runs out, the batch is taken in parts from then on (with batch norm in training mode that is another
    function: `method` says so).

    Args:
        schedule: When to measure, such as `every(20)`; None leaves it to the budget.
        tol: Relative residual at which the iteration stops.
        max_products: Most Hessian-vector products per measurement; on reaching it the status is `not_converged`.
        preconditioned: Measure the preconditioned sharpness too, where there is a preconditioner.
        batch: A fixed batch to measure on, instead of the current one.
        method: How to come by products: `auto`, or one of the methods of `learnmech.probes.curvature.Choice`.
        name: Name, if there are two probes of this class.

    References:
        Cohen et al. 2021, arXiv 2103.00065; preconditioned: Cohen et al. 2022, arXiv 2207.14484.
    """

    default_name: ClassVar[str] = "sharpness"
    observables: ClassVar[tuple[str, ...]] = ("sharpness",)

    def __init__(
        self,
        schedule: Schedule | None = None,
        *,
        tol: float = 1e-3,
        max_products: int = 30,
        preconditioned: bool = True,
        batch: Any = None,
        method: str = "auto",
        name: str | None = None,
    ) -> None:
        super().__init__(schedule, batch=batch, method=method, name=name)
        if not 0 < tol < 1:
            raise ValueError(f"Sharpness(tol={tol!r}): expected a relative residual between 0 and 1, such as 1e-3")
        if max_products < 1:
            raise ValueError(f"Sharpness(max_products={max_products!r}): expected 1 or more, such as 30")
        self.tol = tol
        self.max_products = max_products
        self.preconditioned = preconditioned

    def reset(self) -> None:
        """Forget eigenvectors of an earlier run."""
        super().reset()
        self._starts: dict[str, TopEigenvalues] = {}
        self._changes = Changes()

    def __getstate__(self) -> dict[str, Any]:
        """Leave eigenvectors out of copies and pickles: they are as large as the model."""
        return self.__dict__ | {"_starts": {}}

    def _scale(self, view: TrainingView) -> list[Tensor] | NoPreconditioner | None:
        """Return P^(-1/2) of the optimizer's preconditioner, why there is none now, or None if there never is one."""
        if not self.preconditioned or len(view.optimizers) != 1:
            return None
        found = preconditioner_of(view.optimizers[0], list(view.parameters.values()))
        if isinstance(found, NoPreconditioner):
            return found if found.yet else None
        return inverse_root(found)

    def measured(self, loss: PureLoss, view: TrainingView) -> list[Measurement]:
        """Measure on a pure loss at the weights of `view`."""
        batch = self.batch_of(view)
        top, method = self._top("sharpness", loss, batch, None)
        products = top.products
        found = [_measurement("sharpness", top, method)]
        scale = self._scale(view)
        if isinstance(scale, NoPreconditioner):
            found.append(Measurement("sharpness_preconditioned", None, status=Status.UNDETERMINED, reason=scale.reason))
        elif scale is not None:
            preconditioned, method = self._top("sharpness_preconditioned", loss, batch, scale)
            products += preconditioned.products
            found.append(_measurement("sharpness_preconditioned", preconditioned, method))
        found.append(Measurement("sharpness_products", float(products)))
        return found + self._determinism(loss, batch)

    def _top(
        self, observable: str, loss: PureLoss, batch: Any, scale: list[Tensor] | None
    ) -> tuple[TopEigenvalues, str]:
        operator = self.operator(loss, batch, scale)
        earlier = self._starts.get(observable)
        if earlier is not None and earlier.vectors.shape != (1, operator.space.size):
            earlier = None  # layers were frozen or unfrozen since, or the last measurement failed
        limit = min(self.max_products, max(operator.space.dimension, 1))
        check = self.uses % RECHECK == 0
        top = top_eigenvalues_of(operator, start=earlier, tol=self.tol, max_products=limit, check=check)
        operator.release()
        self._starts[observable] = top
        return top, self.method_of(operator)

    def _determinism(self, loss: PureLoss, batch: Any) -> list[Measurement]:
        """Compare the loss under two states of the random streams: laws of deterministic descent ask for that."""
        if self.uses % RECHECK:
            return []
        part = self.parts(batch)[0]
        with torch.no_grad():
            one, other = (float(loss(part, draw=draw)) for draw in (0, 1))
        if not math.isfinite(one):
            return []
        return self._changes.note("deterministic_loss", float(math.isclose(one, other, rel_tol=1e-6)))


def _measurement(observable: str, top: TopEigenvalues, method: str) -> Measurement:
    value, residual = float(top.eigenvalues[0]), float(top.residuals[0])
    known = math.isfinite(value) or top.status is Status.NON_FINITE
    return Measurement(
        observable,
        value if known else None,
        stderr=residual if math.isfinite(residual) else None,
        status=top.status,
        reason=top.reason,
        method=method,
    )
