"""Sharpness: the largest eigenvalue of the loss Hessian, warm-started from the measurement before."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from learnmech.observables import Status
from learnmech.probes.arguments import share, whole
from learnmech.probes.changes import Changes
from learnmech.probes.curvature import Choice, Operator, TopEigenvalues, Unmeasurable, top_eigenvalues_of
from learnmech.probes.curvature.operators.choice import GAUSS_NEWTON, METHODS
from learnmech.probes.curvature.preconditioners import NoPreconditioner, inverse_root, preconditioner_of
from learnmech.probes.curvature_probe import PATIENCE, CurvatureProbe
from learnmech.probes.isolation import PureLoss
from learnmech.probes.probe import TrainingView
from learnmech.probes.schedule import Schedule
from learnmech.wire import Measurement

RECHECK = 10
"""Measurements between two looks at what rarely changes: is the loss deterministic (a schedule may switch dropout on),
and does the curvature agree with finite differences."""

MAX_BASIS = 24
"""Vectors of the model's size held at most. Tracking at 1 % holds five while the vector holds. Of 1 808 measurements
27 took 24 products or more, all but one the first of a training: a restart is rare."""


class Sharpness(CurvatureProbe):
    """Measures `sharpness`, and `sharpness_preconditioned` where the optimizer preconditions.

    Lanczos on Hessian-vector products of the loss on the batch of the step, in training mode and at the training's
    own randomness, at weights that have not seen this batch: a `Recorder` holds a copy of those from before the update
    (with an adaptive optimizer also its diagonal), unless the batch is a fixed one. Each measurement starts from the
    last eigenvector, with a challenger beside it, and stops when the estimated error of the eigenvalue is at most
    `accuracy`: mostly three products while the eigenvector holds, six where it turns. `stderr` is that estimate, the
    products' own error included: residual^2 / gap, and never more than the residual |Hv - lambda v|. It is no bound:
    one reading of a hundred was off by more than 1 % (docs/curvature.md). Beside it: `sharpness_products`, and
    `deterministic_loss`, which edge laws need.

    Where no way to Hessian products works, `sharpness` is `unsupported`, with the reason, and `sharpness_gauss_newton`
    is measured instead: the largest eigenvalue of the Gauss-Newton matrix, another number.

    When memory runs out, the batch is taken in parts from then on (with batch norm in training mode that is another
    function: `method` says so). Memory between measurements: two vectors of the model's size (eigenvector, runner-up)
    for each of the two observables; during one, the graph of a double backward and as many vectors as products, plus
    four.

    Args:
        schedule: When to measure, such as `every(20)`; None leaves it to the budget.
        accuracy: Relative error of the eigenvalue, by estimate, at which the iteration stops.
        tol: Relative residual at which it stops instead, for those who want the eigenvector.
        max_products: Most Hessian-vector products per measurement; on reaching it the status is `not_converged`.
        preconditioned: Measure the preconditioned sharpness too, where there is a preconditioner.
        batch: A fixed batch to measure on, instead of the current one.
        method: How to come by products: `auto`, or one of the methods of `learnmech.probes.curvature.Choice`; with
            `gauss_newton` the observable is `sharpness_gauss_newton`.
        name: Name, if there are two probes of this class.

    References:
        Cohen et al. 2021, arXiv 2103.00065; preconditioned: Cohen et al. 2022, arXiv 2207.14484.
    """

    default_name: ClassVar[str] = "sharpness"
    methods: ClassVar[tuple[str, ...]] = METHODS
    observables: ClassVar[tuple[str, ...]] = ("sharpness",)

    def __init__(
        self,
        schedule: Schedule | None = None,
        *,
        accuracy: float = 0.01,
        tol: float | None = None,
        max_products: int = 30,
        preconditioned: bool = True,
        batch: Any = None,
        method: str = "auto",
        name: str | None = None,
    ) -> None:
        super().__init__(schedule, batch=batch, method=method, name=name)
        self.accuracy = share(self, "accuracy", accuracy, "relative error", 0.01)
        self.tol = None if tol is None else share(self, "tol", tol, "relative residual", 1e-3)
        self.max_products = whole(self, "max_products", max_products, 1, 30)
        self.preconditioned = preconditioned

    def reset(self) -> None:
        """Forget eigenvectors of an earlier run."""
        super().reset()
        self._starts: dict[str, TopEigenvalues] = {}
        self._scale_held: list[Tensor] | NoPreconditioner | None = None
        self._changes = Changes()
        self._substitute = Choice(GAUSS_NEWTON)
        self._failures = 0
        self._reason = ""

    def __getstate__(self) -> dict[str, Any]:
        """Leave eigenvectors out of copies and pickles: they are as large as the model."""
        return super().__getstate__() | {"_starts": {}, "_scale_held": None}

    def prepare(self, view: TrainingView) -> None:
        """Hold the weights from before the update, and the preconditioner as it is then: without this gradient."""
        super().prepare(view)
        self._scale_held = self._scale(view)

    def measure(self, view: TrainingView) -> list[Measurement]:
        """Measure, and let go of what was held."""
        try:
            return super().measure(view)
        finally:
            self._scale_held = None

    def direction(self, size: int) -> Tensor | None:
        """Return the eigenvector of the last measurement of `sharpness`, of length 1; None if there is none [size]."""
        last = self._starts.get("sharpness")
        return last.vectors[0] if last is not None and last.vectors.shape == (1, size) else None

    def measured(self, loss: PureLoss, view: TrainingView) -> list[Measurement]:
        """Measure on a pure loss at the weights of `view`."""
        batch = self.batch_of(view)
        if self.method == GAUSS_NEWTON:
            return self._gauss_newton(loss, batch)
        if self._failures >= PATIENCE:
            return self._instead(loss, batch)
        try:
            top, method = self._top("sharpness", loss, batch, None)
        except Unmeasurable as error:
            self._failures, self._reason = self._failures + 1, str(error)
            return self._instead(loss, batch)
        products = top.products
        found = [_measurement("sharpness", top, method)]
        scale = self._scale_held if self._held else self._scale(view)
        if isinstance(scale, NoPreconditioner):
            found.append(Measurement("sharpness_preconditioned", None, status=Status.UNDETERMINED, reason=scale.reason))
        elif scale is not None:
            preconditioned, method = self._top("sharpness_preconditioned", loss, batch, scale)
            products += preconditioned.products
            found.append(_measurement("sharpness_preconditioned", preconditioned, method))
        found.append(Measurement("sharpness_products", float(products)))
        return found + self._determinism(loss, batch)

    def _scale(self, view: TrainingView) -> list[Tensor] | NoPreconditioner | None:
        """Return P^(-1/2) of the optimizer's preconditioner, why there is none now, or None if there never is one."""
        if not self.preconditioned or len(view.optimizers) != 1:
            return None
        found = preconditioner_of(view.optimizers[0], list(view.parameters.values()))
        if isinstance(found, NoPreconditioner):
            return found if found.yet else None
        return inverse_root(found)

    def _top(
        self, observable: str, loss: PureLoss, batch: Any, scale: list[Tensor] | None
    ) -> tuple[TopEigenvalues, str]:
        """Measure with the method that works; one that proves wrong on the way gives its place to the next."""
        while True:
            top, method = self._solved(observable, lambda: self.operator(loss, batch, scale))
            if top.status is not Status.UNSUPPORTED or not self._choice.doubt(top.reason):
                return top, method

    def _solved(self, observable: str, make: Callable[[], Operator]) -> tuple[TopEigenvalues, str]:
        operator = make()
        try:
            earlier = self._starts.pop(observable, None)
            if earlier is not None and earlier.vectors.shape != (1, operator.space.size):
                earlier = None  # layers were frozen or unfrozen since, or the last measurement failed
            top = top_eigenvalues_of(
                operator,
                start=earlier,
                tol=self.tol or 1e-3,
                accuracy=None if self.tol else self.accuracy,
                max_products=min(self.max_products, max(operator.space.dimension, 1)),
                max_basis=MAX_BASIS,
                check=self.uses % RECHECK == 0,
            )
        finally:
            operator.release()
        self._starts[observable] = top
        return top, self.method_of(operator)

    def _instead(self, loss: PureLoss, batch: Any) -> list[Measurement]:
        """Return the Gauss-Newton sharpness, and why there is no other."""
        refused = Measurement("sharpness", None, status=Status.UNSUPPORTED, reason=self._reason)
        found = self._gauss_newton(loss, batch)
        # in front: a probe whose first measurement is unsupported time after time is given up
        works = found[0].status is not Status.UNSUPPORTED
        return [*found, refused] if works else [refused, *found]

    def _gauss_newton(self, loss: PureLoss, batch: Any) -> list[Measurement]:
        def make() -> Operator:
            return self.operator(loss, batch, choice=self._substitute)

        try:
            top, method = self._solved("sharpness_gauss_newton", make)
        except Unmeasurable as error:
            return [Measurement("sharpness_gauss_newton", None, status=Status.UNSUPPORTED, reason=str(error))]
        found = _measurement("sharpness_gauss_newton", top, method)
        return [found, Measurement("sharpness_products", float(top.products))]

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
    value, error = float(top.eigenvalues[0]), float(top.errors[0])
    known = math.isfinite(value) or top.status is Status.NON_FINITE
    return Measurement(
        observable,
        value if known else None,
        stderr=error if math.isfinite(error) else None,
        status=top.status,
        reason=top.reason,
        method=method,
    )
