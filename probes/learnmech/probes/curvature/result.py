"""What a measurement of top eigenvalues returns: the numbers, their bounds, and whether they can be trusted."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from learnmech.observables import Status
from learnmech.probes.curvature.check import NOT_COMPARED, Comparison


@dataclass(frozen=True, eq=False, kw_only=True)
class TopEigenvalues:
    """The k largest (or smallest, or both) algebraic eigenvalues of a Hessian, each with its bound.

    Give the whole result as `start` to the next measurement of the same model.

    Attributes:
        eigenvalues: Largest algebraic first (of the smallest: the most negative first; of both: the k largest, then
            the k smallest), in units of the loss per squared parameter; float64, on the CPU. NaN if the measurement
            came to nothing. None lies beyond the true eigenvalue of its rank, up to rounding. [k] or [2 k]
        residuals: Bounds of |Hv - eigenvalue v|; within this distance lies an eigenvalue of H. [k]
        converged: Every residual, or estimated error, reached what was asked for, or rounding.
        products: Hessian-vector products that were spent.
        vectors: Unit eigenvectors, flat, in the scaled coordinates P^(1/2) w under a preconditioner; empty if the
            measurement came to nothing. [k, P]
        status: `ok`; `not_converged` (the products ran out); `non_finite`; `unsupported` (no usable second derivative,
            or no preconditioner yet).
        reason: Why it is not `ok`, as a sentence.
        loss: The loss whose Hessian it is.
        comparison: Curvature along the first vector by finite differences.
        asymmetry: Largest |q_i' H q_j - q_j' H q_i| met, relative to |H|.
        unused: Parameters that do not enter the loss. If training has gradients for them, the measurement is of
            another loss than training's.
        scout: The next Ritz vector, the likeliest to overtake: mixed into the next start. [P]
        age: Measurements since the last cold start.
        errors: Estimates of |true eigenvalue of this rank - eigenvalue|, at most `residuals`; see `accuracy`. [k]
        second: The eigenvalue that `scout` stands for, relative to the k-th, when it was last seen.
        turned: Sine of the angle between the k-th vector and the plane of its predecessor and `scout`; 1 if there are
            none.
    """

    eigenvalues: Tensor
    residuals: Tensor
    converged: bool
    products: int
    vectors: Tensor = field(repr=False)
    status: Status
    reason: str = ""
    loss: float = math.nan
    comparison: Comparison = NOT_COMPARED
    asymmetry: float = math.nan
    unused: tuple[str, ...] = ()
    scout: Tensor | None = field(default=None, repr=False)
    age: int = 0
    errors: Tensor = field(default_factory=lambda: torch.full((1,), math.nan, dtype=torch.float64))
    turned: float = 1.0
    second: float = 0.0


def nothing(k: int, status: Status, reason: str, *, products: int = 0, loss: float = math.nan) -> TopEigenvalues:
    """Return the result of a measurement that came to nothing, and why."""
    values = torch.full((k,), math.nan, dtype=torch.float64)
    return TopEigenvalues(
        eigenvalues=values,
        residuals=values.clone(),
        errors=values.clone(),
        converged=False,
        products=products,
        vectors=torch.empty((0, 0)),
        status=status,
        reason=reason,
        loss=loss,
    )
