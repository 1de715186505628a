"""Can a result be trusted? What products, differences and bounds say together, as a status and a sentence."""

from learnmech.observables import Status
from learnmech.probes.curvature.check import Agreement, Comparison
from learnmech.probes.curvature.operators import Operator
from learnmech.probes.curvature.solvers.lanczos import RitzPairs

ASYMMETRY = 0.02
"""Relative asymmetry beyond which the products are not those of a Hessian. Rounding gives 1e-6 in float32, and 3e-3
under bfloat16 autocast; a second derivative that is missing in one place gives its share of the whole."""


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
    if comparison.agreement is Agreement.DISAGREES:
        found = ", ".join(f"{difference:.4g}" for difference in comparison.differences)
        return Status.UNSUPPORTED, (
            f"an operation in the model has a wrong second derivative: along the top vector the curvature is {top:.4g} "
            f"by double backward and {found} by differences of gradients"
        )
    if pairs.asymmetry > ASYMMETRY:
        return Status.UNSUPPORTED, (
            f"an operation in the model has a wrong second derivative: the Hessian ({operator.method}) is asymmetric by "
            f"{pairs.asymmetry:.1%} of its norm"
        )
    if not pairs.converged:
        return Status.NOT_CONVERGED, (
            f"after {pairs.products} products the relative residual is {_relative(pairs):.2g}, wanted is {tol:.2g}"
        )
    return Status.OK, ""


def _relative(pairs: RitzPairs) -> float:
    return float((pairs.residuals / pairs.values.abs()).max())
