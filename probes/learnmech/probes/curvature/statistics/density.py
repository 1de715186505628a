"""The density of eigenvalues from several readings: its quantiles, each with the band it is certain to lie in."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from learnmech.probes.curvature.statistics.reading import Reading

Z = 1.959964
"""Half-width of a 95 % interval in standard errors (normal distribution)."""

HALVINGS = 40
"""Halvings of the interval a quantile is searched in: down to 1e-12 of |H|_F, below the rounding of products."""


@dataclass(frozen=True, slots=True)
class Quantile:
    """A quantile of the density of eigenvalues.

    Attributes:
        value: Estimate: half of the bounds' way from the lower to the upper share lies at p.
        lower: The quantile is no smaller, at 95 %.
        upper: Nor is it larger.
    """

    value: float
    lower: float
    upper: float

    @property
    def stderr(self) -> float:
        """Standard error whose 95 % interval around the value holds the band."""
        return max(self.upper - self.value, self.value - self.lower) / Z


def quantiles(
    readings: Sequence[Reading], probabilities: Sequence[float], *, radius: float, noise: float = 0.0
) -> list[Quantile]:
    r"""Return quantiles of the density of eigenvalues, each with its band.

    The share of eigenvalues below x is estimated by the mean over readings of the middle of the bounds that each
    one's quadrature leaves. The band is what remains possible, added up:

    - quadrature: anything between the bounds (Chebyshev-Markov-Stieltjes), a theorem for each reading;
    - chance: a reading's share is Beta distributed about the true one with variance 2 p (1 - p) / (N + 2), taken at
      95 %; arcsin sqrt(share) has the variance 1 / 2N at any p;
    - coupling between what is known and the rest: of rank r, it shifts the number of eigenvalues below x by at most r;
      of norm c, it moves each of them by at most c (Weyl). The better of the two;
    - products that are not exact: `noise` moves each eigenvalue by no more.

    Args:
        readings: One or more readings of one matrix.
        probabilities: Numbers p between 0 and 1.
        radius: Bound of the absolute value of all eigenvalues.
        noise: Bound of the norm of the error of the matrix.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    least = min(reading.dimension for reading in readings)
    angle = Z * math.sqrt(1.0 / (2.0 * least * len(readings))) if least else 0.0
    center = np.arcsin(np.sqrt(p))
    low = np.sin(np.clip(center - angle, 0.0, math.pi / 2)) ** 2
    high = np.sin(np.clip(center + angle, 0.0, math.pi / 2)) ** 2
    shift = math.fsum(reading.couplings / reading.size for reading in readings) / len(readings)
    move = max(reading.coupling for reading in readings)

    def bounds(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        lower, upper = np.mean([reading.shares(at) for reading in readings], axis=0)
        return lower, upper

    def middle(at: np.ndarray) -> np.ndarray:
        center: np.ndarray = np.mean(bounds(at), axis=0)
        return center

    # one search for all: the estimate, and both ends either way
    values = _first(middle, p, radius)
    below = _first(lambda at: bounds(at)[1], np.concatenate([low - shift, low]), radius)
    above = _first(lambda at: bounds(at)[0], np.concatenate([high + shift, high]), radius)
    k = len(p)
    lowest = np.maximum(below[:k], below[k:] - move) - noise
    highest = np.minimum(above[:k], above[k:] + move) + noise
    return [
        Quantile(float(v), float(min(lo, v)), float(max(hi, v)))
        for v, lo, hi in zip(values, lowest, highest, strict=True)
    ]


def _first(share: Callable[[np.ndarray], np.ndarray], wanted: np.ndarray, radius: float) -> np.ndarray:
    """Return the least x in [-radius, radius] at which a rising share reaches each wanted one [k]; an end otherwise."""
    left, right = np.full(len(wanted), -radius), np.full(len(wanted), radius)
    # the share may reach what is wanted at the left end already, or never
    reached = share(left) >= wanted
    for _ in range(HALVINGS):
        center = (left + right) / 2
        there = share(center) >= wanted
        right = np.where(there, center, right)
        left = np.where(there, left, center)
    return np.where(reached, -radius, right)
