"""Can a result be trusted? What products, differences and bounds say together, as a status and a sentence."""

import math

from torch import Tensor

from learnmech.observables import Status
from learnmech.probes.curvature.check import Agreement, Comparison
from learnmech.probes.curvature.operators import Operator
from learnmech.probes.curvature.solvers.lanczos import RitzPairs

ASYMMETRY = 0.02
"""Relative asymmetry beyond which the products are not those of a Hessian. Rounding gives 1e-6 in float32, and 3e-3
under bfloat16 autocast; a second derivative that is missing in one place gives its share of the whole."""

TRUSTED = 0.02
"""Products with a larger relative error give no eigenvalue: its own error is of that size. On smooth networks in
float32 differences state 3e-5 to 2e-3, with ReLU 0.1 and more, in bfloat16 0.01 to 0.2."""

ROUNDED = 0.05
"""The same for exact products in half precision (`learnmech.probes.curvature.operators.rounded`): their errors are
rounding in all directions, of which an eigenvalue takes little. Stated at 5 % or less, eigenvalues that had converged
to 1e-4 were off by 0.7 % at most (105 cases); beyond 5 %, by up to 4.8 %."""


def trusted(operator: Operator) -> bool:
    """Tell whether products are exact enough for eigenvalues and quotients."""
    return operator.error <= (ROUNDED if operator.method == "double_backward" else TRUSTED)


def widened(operator: Operator, residuals: Tensor) -> Tensor:
    """Return residual bounds that hold for the true matrix, where the products have an error of their own.

    |A v - theta v| <= |P v - theta v| + |P v - A v|: the bound of the products plus `operator.uncertainty`.

    Args:
        operator: The operator the residuals are of.
        residuals: Bounds from its products. [k]
    """
    return residuals + uncertainty(operator)


def uncertainty(operator: Operator) -> float:
    """Return the error of a product of a unit vector by the operator's own account; infinite if it does not say."""
    if operator.error == 0.0:
        return 0.0
    return float(getattr(operator, "uncertainty", math.inf))


def judged(operator: Operator, pairs: RitzPairs, comparison: Comparison, tol: float) -> tuple[Status, str]:
    """Say whether Ritz pairs can be trusted.

    Args:
        operator: The operator they are of.
        pairs: The pairs.
        comparison: The curvature along the first vector by differences of gradients, if it was compared.
        tol: The relative residual that was wanted.

    Returns:
        The status, and the reason as a sentence where it is not `ok`.
    """
    top = float(pairs.values[0])
    if not trusted(operator):
        return Status.UNDETERMINED, (
            f"products by {operator.method.replace('_', ' ')} are off by about {operator.error:.0%} of the matrix, as "
            f"on networks with kinks (ReLU, max pooling) and in low precision: the {top:.4g} found may be noise"
        )
    if comparison.agreement is Agreement.DISAGREES:
        found = ", ".join(f"{difference:.4g}" for difference in comparison.differences)
        return Status.UNSUPPORTED, (
            "an operation in the model has a wrong second derivative: along the top vector the curvature is "
            f"{top:.4g} by {operator.method.replace('_', ' ')} and {found} by differences of gradients"
        )
    differences = operator.method.startswith("finite_differences")
    if differences and comparison.agreement is Agreement.INCONCLUSIVE:
        return Status.UNDETERMINED, (
            f"products by {operator.method.replace('_', ' ')} gave {top:.4g}, but differences with other steps scatter "
            "around it: kinks (ReLU, max pooling) or low precision"
        )
    if pairs.asymmetry > ASYMMETRY + 2 * operator.error:
        return Status.UNSUPPORTED, (
            "an operation in the model has a wrong derivative, or the loss detaches what depends on the weights: the "
            f"Hessian ({operator.method}) is asymmetric by {pairs.asymmetry:.1%} of its norm"
        )
    if not pairs.converged and not _within_error(operator, pairs):
        return Status.NOT_CONVERGED, (
            f"after {pairs.products} products the relative residual is {_relative(pairs):.2g}, wanted is {tol:.2g}"
        )
    return Status.OK, ""


def _within_error(operator: Operator, pairs: RitzPairs) -> bool:
    """Tell whether the residual has come down to the error of the products: more of them gain nothing."""
    return operator.error > 0 and float(pairs.residuals.max()) <= uncertainty(operator)


def _relative(pairs: RitzPairs) -> float:
    return float((pairs.residuals / pairs.values.abs()).max())
