"""How much of a gradient lies in the span of a few eigenvectors, and how well that is known."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from learnmech.probes.curvature.space import Space


@dataclass(frozen=True, slots=True)
class Alignment:
    """Share of a squared gradient in a subspace.

    Attributes:
        value: |P g|^2 / |g|^2; NaN if the gradient is zero.
        error: How far it may be from that of the true eigenspace; NaN where a gap is not positive.
    """

    value: float
    error: float


def alignment(
    vectors: Tensor, gradient: Tensor, space: Space, *, residuals: Sequence[float], gaps: Sequence[float]
) -> Alignment:
    """Return the share of |g|^2 in the span of Ritz vectors, and how far residuals and gaps let it be off.

    The part of a Ritz vector v_i outside the true top eigenspace is at most e_i = |A v_i - theta_i v_i| / gap_i, where
    gap_i is the distance from theta_i down to the largest eigenvalue that is left out (Davis & Kahan 1970, the
    sin-theta theorem for one vector). With P the projector on the Ritz vectors, the share then changes by at most

        2 |g - P g| sum_i |v_i'g| e_i / |g|^2 + sum_i e_i^2

    to second order in the e_i.

    Args:
        vectors: Orthonormal Ritz vectors. [k, size]
        gradient: The gradient g of the same loss. [size]
        space: The space of the vectors.
        residuals: |A v_i - theta_i v_i| of each. [k]
        gaps: The gap below each theta_i; infinite if nothing is left out. [k]
    """
    square, *parts = space.dots([gradient, *vectors], gradient).tolist()
    if not square > 0.0:
        return Alignment(math.nan, math.nan)
    value = math.fsum(part * part for part in parts) / square
    if not all(gap > 0.0 for gap in gaps):
        return Alignment(value, math.nan)
    angles = [residual / gap for residual, gap in zip(residuals, gaps, strict=True)]
    outside = math.sqrt(max(1 - value, 0.0) / square)  # |g - P g| / |g|^2
    first = 2 * outside * math.fsum(abs(part) * angle for part, angle in zip(parts, angles, strict=True))
    return Alignment(value, min(first + math.fsum(angle**2 for angle in angles), 1.0))
