"""Both ends of the Hessian's spectrum, and how much of the gradient lies in its top eigenspace."""

import math
from typing import Any, ClassVar

from learnmech.observables import Status
from learnmech.probes.arguments import share, whole
from learnmech.probes.curvature import NonFinite, Operator, TopEigenvalues, Unmeasurable, top_eigenvalues_of
from learnmech.probes.curvature.stability import Alignment, alignment
from learnmech.probes.isolation import PureLoss
from learnmech.probes.probe import TrainingView
from learnmech.probes.schedule import Schedule
from learnmech.probes.update_probe import UpdateProbe
from learnmech.wire import Measurement

RECHECK = 10
"""Measurements between two comparisons of the curvature with finite differences, as in `Sharpness`."""

UNGAPPED = 0.25
"""Error of the alignment beyond which it says nothing: the share itself is between 0 and 1."""


class HessianEigenvalues(UpdateProbe):
    """Measures the k largest eigenvalues of the Hessian, the most negative ones, and the gradient's alignment.

    - `hessian_eigenvalue`, scope `1` to `k` from the top, algebraically; `stderr` is the bound |Hv - lambda v|.
    - `hessian_eigenvalue_smallest`, scope `1` to `smallest` from the bottom: the most negative curvature first.
    - `gradient_alignment`, scope `top_k`: |P g|^2 / |g|^2 with g the gradient of the same batch and P the projector on
      the k eigenvectors. Its `stderr` bounds what the angle between their span and the true eigenspace can change, by
      the theorem of Davis and Kahan, to second order, from the residuals and the gap to the next eigenvalue. That
      one is taken from the runner-up of the iteration, with its residual: an eigenvalue in between that the iteration
      has missed is not covered. Where the gap is not resolved, the top k are not a subspace of their own, and the
      status is `undetermined`.

    On the batch of an update at the weights before it (afterwards the gradient of this batch is what is left of the one
    that moved them), in training mode; each measurement starts from the last eigenvectors. Eigenvalues of a small batch
    are larger than those of all data: by 5 % at 128 of 500 examples, by 56 % at 16.

    Costs a gradient, the products of both ends, and one for the gap: on a small MLP with changing batches of 64 some 40
    products for five eigenvalues and 35 for the smallest, 60 and 30 from a cold start. Memory: the graph of one double
    backward, a basis of as many vectors as one end takes products, k + smallest + 2 vectors of the weights' size
    between measurements, and one copy of the weights from before the update until the measurement.

    Args:
        schedule: When to measure, such as `every(100)`; None leaves it to the budget.
        k: How many of the largest.
        smallest: How many of the smallest; 0 for none.
        tol: Relative residual at which the iteration stops.
        max_products: Most Hessian-vector products for either end; on reaching it the status is `not_converged`.
        batch: A fixed batch to measure on, instead of that of the update.
        method: How to come by products: `auto`, or one of the methods of `learnmech.probes.curvature.Choice`.
        name: Name, if there are two probes of this class.

    References:
        Top subspace: Gur-Ari et al. 2018, arXiv 1812.04754; what it does not mean: arXiv 2405.16002. Bound: Davis &
        Kahan 1970, the sin-theta theorem.
    """

    default_name: ClassVar[str] = "hessian_eigenvalues"
    observables: ClassVar[tuple[str, ...]] = ("hessian_eigenvalue", "hessian_eigenvalue_smallest", "gradient_alignment")

    def __init__(
        self,
        schedule: Schedule | None = None,
        *,
        k: int = 5,
        smallest: int = 1,
        tol: float = 1e-2,
        max_products: int = 60,
        batch: Any = None,
        method: str = "auto",
        name: str | None = None,
    ) -> None:
        k, smallest = whole(self, "k", k, 1, 5), whole(self, "smallest", smallest, 0, 1)
        tol, max_products = (
            share(self, "tol", tol, "relative residual", 0.01),
            whole(self, "max_products", max_products, 1, 60),
        )
        if max_products < max(k, smallest):
            raise ValueError(
                f"HessianEigenvalues(k={k}, smallest={smallest}, max_products={max_products}): expected at least one "
                f"product for each eigenvalue, {max(k, smallest)}, and ten times that to converge"
            )
        super().__init__(schedule, batch=batch, method=method, name=name)
        self.k = k
        self.smallest = smallest
        self.tol = tol
        self.max_products = max_products

    def reset(self) -> None:
        """Forget eigenvectors of an earlier run."""
        super().reset()
        self._starts: dict[str, TopEigenvalues] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave eigenvectors and held weights out of copies and pickles: they are as large as the model."""
        return super().__getstate__() | {"_starts": {}}

    def places(self) -> list[tuple[str, str]]:
        """List the observables and scopes that numbers of this probe go to."""
        ends = (("hessian_eigenvalue", self.k), ("hessian_eigenvalue_smallest", self.smallest))
        ranks = [(name, str(rank)) for name, count in ends for rank in range(1, count + 1)]
        return [*ranks, ("gradient_alignment", f"top_{self.k}")]

    def measured(self, loss: PureLoss, view: TrainingView) -> list[Measurement]:
        """Measure on a pure loss at w_(t+1), with w_t held."""
        objective = self.applied(loss, view).before
        while True:
            try:
                operator = self.operator_on(objective)
            except Unmeasurable as error:
                return self.nothing(Status.UNSUPPORTED, str(error))
            try:
                found = self._both_ends(operator, self.method_of(operator) + self.where(view))
            finally:
                operator.release()
            if found[0].status is not Status.UNSUPPORTED or not self._choice.doubt(found[0].reason):
                return found

    def _both_ends(self, operator: Operator, method: str) -> list[Measurement]:
        top = self._end("hessian_eigenvalue", operator, min(self.k, operator.space.dimension))
        found = _eigenvalues("hessian_eigenvalue", top, method, self.tol)
        if not len(top.vectors):
            return self.nothing(top.status, top.reason)
        if self.smallest:
            few = min(self.smallest, operator.space.dimension)
            bottom = self._end("hessian_eigenvalue_smallest", operator, few, which="smallest")
            found += _eigenvalues("hessian_eigenvalue_smallest", bottom, method, self.tol)
        return [*found, _alignment(top, operator, method)]

    def _end(self, observable: str, operator: Operator, k: int, which: str = "largest") -> TopEigenvalues:
        """Return the k eigenvalues at one end."""
        earlier = self._starts.get(observable)
        if earlier is not None and earlier.vectors.shape != (k, operator.space.size):
            earlier = None  # layers were frozen or unfrozen since, or the last measurement failed
        limit = min(self.max_products, operator.space.dimension)
        check = self.uses % RECHECK == 0
        result = top_eigenvalues_of(
            operator, k, start=earlier, which=which, tol=self.tol, max_products=limit, check=check
        )
        self._starts[observable] = result
        return result


def _eigenvalues(observable: str, found: TopEigenvalues, method: str, tol: float) -> list[Measurement]:
    """Return one measurement per eigenvalue; one that has converged is not blamed for the others."""
    measurements = []
    for rank, (value, residual) in enumerate(
        zip(found.eigenvalues.tolist(), found.residuals.tolist(), strict=True), start=1
    ):
        known = math.isfinite(value)
        good = known and found.status is Status.NOT_CONVERGED and residual <= tol * abs(value)
        measurements.append(
            Measurement(
                observable,
                value if known else None,
                scope=str(rank),
                stderr=residual if math.isfinite(residual) else None,
                status=Status.OK if good else found.status,
                reason="" if good else found.reason,
                method=method,
            )
        )
    return measurements


def _alignment(top: TopEigenvalues, operator: Operator, method: str) -> Measurement:
    """Return how much of the gradient lies in the span of the top eigenvectors."""
    k = len(top.vectors)
    scope = f"top_{k}"
    try:
        next_one = _next(top, operator)
        found = alignment(
            top.vectors,
            operator.gradient(),
            operator.space,
            residuals=top.residuals.tolist(),
            gaps=[value - next_one for value in top.eigenvalues.tolist()],
        )
    except NonFinite as error:
        return Measurement("gradient_alignment", None, scope=scope, status=Status.NON_FINITE, reason=str(error))
    if math.isnan(found.value):
        reason = "the gradient is zero"
        return Measurement("gradient_alignment", None, scope=scope, status=Status.UNDETERMINED, reason=reason)
    status, reason = _judged(found, k)
    bound = found.error if math.isfinite(found.error) else None
    return Measurement(
        "gradient_alignment", found.value, scope=scope, stderr=bound, status=status, reason=reason, method=method
    )


def _judged(found: Alignment, k: int) -> tuple[Status, str]:
    if math.isnan(found.error):
        return Status.UNDETERMINED, f"eigenvalues {k} and {k + 1} are not told apart: the top {k} are no subspace"
    if found.error > UNGAPPED:
        return Status.UNDETERMINED, (
            f"the top {k} eigenvectors are not known well enough: by residuals and gap the share may be off by "
            f"{found.error:.2g}"
        )
    return Status.OK, ""


def _next(top: TopEigenvalues, operator: Operator) -> float:
    """Return what the next eigenvalue is at most, by the runner-up's quotient and residual; NaN without a runner-up."""
    if len(top.vectors) >= operator.space.dimension:
        return -math.inf
    if top.scout is None:
        return math.nan
    space = operator.space
    vector = space.unit(top.scout)
    product = operator.matvec(vector)
    quotient = space.dot(vector, product)
    residual = space.norm(product - quotient.to(product) * vector)
    return float(quotient + residual)
