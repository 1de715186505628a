"""Gradient noise: unbiased estimates of |G|^2 and tr Sigma from the pieces a gradient is summed from.

G is the gradient of the expected loss, Sigma the covariance of the gradient of one example. An update forms
g = sum_k h_k from independent pieces k (processes, micro-batches, examples), h_k = c_k g_k with sum_k c_k = 1, where
g_k is the mean gradient over n_k units (examples, or the tokens in them) of covariance Sigma:

    E |h_k|^2 = c_k^2 (|G|^2 + tr Sigma / n_k),    E |g|^2 = |G|^2 + tr Sigma sum_k c_k^2 / n_k

- |G|^2 from the products of different pieces alone, sum_(j != k) h_j h_k / sum_(j != k) c_j c_k:

      |G|^2 = (|g|^2 - sum_k |h_k|^2) / (1 - sum_k c_k^2)

  It stays unbiased when n_k is not known, or Sigma differs between pieces.
- tr Sigma from the scatter of the pieces about their mean:

      tr Sigma = sum_k c_k |g_k - g|^2 / D = (sum_k |h_k|^2 / c_k - |g|^2) / D,    D = sum_k c_k (1 - c_k) / n_k

  This is sum_k b_k n_k (|g_k|^2 - |G|^2) with b_k = c_k (1 - c_k) / (n_k D), the only b_k, sum_k b_k = 1, for which G
  drops out: with any others the estimate scatters as |G|, however small the noise is. With c_k proportional to n_k,
  D = (K - 1) / N and it is the within-groups variance of an analysis of variance, the one of least variance.

With two pieces of equal size both are those of McCandlish et al. 2018 (arXiv 1812.06162), appendix A.1.

Nothing is clamped: an unbiased estimate of a small positive number is negative every second time, and cutting those off
biases the mean of many (a truth of 1e6 came out as 1e7). The ratio tr Sigma / |G|^2 is therefore never formed from one
measurement but from sums over many: see `learnmech.probes.estimators.ratio`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from learnmech.observables import Status
from learnmech.probes.estimators.squares import square_sum


@dataclass(frozen=True, slots=True)
class NoiseParts:
    """Unbiased estimates from one update, or from one batch.

    Attributes:
        grad_sq_norm: Estimate of |G|^2; it may be negative. NaN unless the status is ok.
        noise_trace: Estimate of tr Sigma, per example; negative at most by rounding. NaN unless the status is ok.
        batch_size: Examples in all pieces together.
        pieces: Pieces K.
        status: Whether there are estimates.
        reason: Why there are none.
        lean: By how much large pieces contribute more, or less, than their weights have it; negative if they do not.
            NaN where sizes are alike, or not known.
        weighted: Whether pieces of unlike sizes have unlike weights.
    """

    grad_sq_norm: float
    noise_trace: float
    batch_size: float
    pieces: int = 0
    status: Status = Status.OK
    reason: str = ""
    lean: float = math.nan
    weighted: bool = False


@dataclass(frozen=True, slots=True)
class Design:
    """What the estimates need to know of the pieces besides gradients: sums over pieces, for any weights w_k.

    Only c_k = w_k / sum w_k matters.

    Attributes:
        pieces: Number K of pieces of positive weight.
        weight: sum w_k.
        weight_sq: sum w_k^2.
        inverse: sum w_k / n_k.
        inverse_sq: sum w_k^2 / n_k.
        units: sum n_k.
        examples: Examples in all pieces: as many as units, or fewer where units are parts of examples.
        units_sq: sum n_k^2; NaN: not known.
    """

    pieces: float
    weight: float
    weight_sq: float
    inverse: float
    inverse_sq: float
    units: float
    examples: float
    units_sq: float = math.nan

    @classmethod
    def of(cls, sizes: Sequence[float], units: Sequence[float] | None = None) -> "Design":
        """Return the sums for pieces of one batch: weighed by the units that their losses are means over.

        >>> Design.of([8, 8, 3]).examples
        19
        >>> Design.of([8, 8], units=[100, 300]).units
        400

        Args:
            sizes: Examples in each piece. [K]
            units: Units (tokens) in each piece; None: its examples. [K]
        """
        weights = sizes if units is None else units
        total = sum(weights)
        squares = sum(weight**2 for weight in weights)
        return cls(len(sizes), total, squares, len(sizes), total, total, sum(sizes), squares)

    def trouble(self) -> str:
        """Say why nothing can be estimated from such pieces; '' if it can."""
        if not (math.isfinite(self.inverse) and self.inverse > 0 and self.units > 0 and self.examples > 0):
            return "one of the pieces has no examples, or units, to be counted" if self.pieces else "no piece was seen"
        if self.pieces < 2 or self.weight_sq >= self.weight**2:
            return "the gradient came in one piece only: its noise shows in the differences between two or more"
        return ""


def noise_parts(
    whole: float, own: float, spread: float, design: Design, *, population: int | None = None
) -> NoiseParts:
    """Estimate |G|^2 and tr Sigma from sums over the pieces of one gradient; the equations are those of the module.

    Without replacement from n examples the gradients of two pieces are correlated, E e_j e_k = -tr Sigma / n: what
    that takes from |G|^2 is given back. tr Sigma needs no correction: it is unbiased for the covariance with divisor
    n - 1.

    Where units are parts of examples, m of them on average in each, the covariance of a unit is m times that of an
    example, for which tr Sigma is returned.

    Args:
        whole: |g|^2.
        own: sum_k |h_k|^2.
        spread: sum_k c_k |g_k - g|^2.
        design: Weights and sizes of the pieces.
        population: Examples n of the data set, if a batch is drawn from it *without replacement* and G is to be that
            data set's gradient. None, or fewer than the examples: independent draws.

    Returns:
        Both estimates, or why there are none.
    """
    trouble = design.trouble()
    status = Status.UNDETERMINED
    if not trouble and not math.isfinite(whole + own + spread):
        trouble, status = "the gradient is not finite", Status.NON_FINITE
    if trouble:
        return NoiseParts(math.nan, math.nan, design.examples, int(design.pieces), status, trouble)
    scatter = design.inverse / design.weight - design.inverse_sq / design.weight**2  # D
    trace = spread / scatter * design.examples / design.units
    shared = trace / population if population and population >= design.examples else 0.0
    square = (whole - own) / (1.0 - design.weight_sq / design.weight**2) + shared
    return NoiseParts(square, trace, design.examples, int(design.pieces))


@overload
def noise_from_pieces(
    gradients: Sequence[Sequence[Tensor]],
    sizes: Sequence[int],
    *,
    units: Sequence[float] | None = None,
    population: int | None = None,
) -> NoiseParts: ...


@overload
def noise_from_pieces(
    gradients: Sequence[Sequence[Tensor]],
    sizes: Sequence[int],
    *,
    units: Sequence[float] | None = None,
    population: int | None = None,
    groups: Sequence[Sequence[int]],
) -> list[NoiseParts]: ...


def noise_from_pieces(
    gradients: Sequence[Sequence[Tensor]],
    sizes: Sequence[int],
    *,
    units: Sequence[float] | None = None,
    population: int | None = None,
    groups: Sequence[Sequence[int]] | None = None,
) -> NoiseParts | list[NoiseParts]:
    """Estimate |G|^2 and tr Sigma from the gradients of disjoint pieces of one batch, weighed by their units.

    The loss of a piece is a mean over its n_k units, so that g = sum_k n_k g_k / N. Differences are taken before
    squaring, so that a signal far above the noise costs no digits; one read-back serves all numbers.

    Args:
        gradients: For each piece its mean gradient, as tensors in the same order. [K][tensors]
        sizes: Examples in each piece. [K]
        units: Units (tokens) in each piece; None: its examples. [K]
        population: See `noise_parts`.
        groups: Indices of the tensors that are measured together; None: all of them, as one.

    Returns:
        Both estimates, for each group if there are groups.

    Raises:
        ValueError: There are fewer than two pieces, sizes are not positive, or they do not match.
    """
    if len(gradients) < 2 or len(sizes) != len(gradients):
        raise ValueError(
            f"{len(gradients)} gradients of pieces with sizes {list(sizes)}; expected two or more, a size for each"
        )
    if min(sizes) < 1:
        raise ValueError(f"pieces have sizes {list(sizes)}; expected one example or more in each")
    if units is not None and (len(units) != len(sizes) or not min(units) > 0):
        raise ValueError(f"pieces hold {list(units)} units; expected a positive number for each of {len(sizes)}")
    total = sum(sizes)
    if population is not None and population < total:
        raise ValueError(f"a batch of {total} examples cannot come from {population} without replacement")
    design = Design.of(sizes, units)
    shares = [weight / design.units for weight in (sizes if units is None else units)]
    rows = [_sums(tensors, shares) for tensors in zip(*gradients, strict=True)]
    table = torch.stack([row.to(rows[0].device) for row in rows]).tolist()  # [tensors, 3]
    found = []
    for group in [range(len(table))] if groups is None else groups:
        whole, own, spread = (math.fsum(table[index][column] for index in group) for column in range(3))
        found.append(noise_parts(whole, own, spread, design, population=population))
    return found[0] if groups is None else found


def _sums(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Return |g|^2, sum_k c_k^2 |g_k|^2 and sum_k c_k |g_k - g|^2 of one tensor. [3]."""
    first = tensors[0]
    mean = torch.zeros_like(first, dtype=torch.promote_types(first.dtype, torch.float32))
    for tensor, share in zip(tensors, shares, strict=True):
        mean.add_(tensor, alpha=share)
    own, spread = square_sum(mean.new_zeros(1)), square_sum(mean.new_zeros(1))
    for tensor, share in zip(tensors, shares, strict=True):
        own = own + share**2 * square_sum(tensor)
        spread = spread + share * square_sum(tensor - mean)
    return torch.stack([square_sum(mean), own, spread])


def noise_between(
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    sizes: tuple[int, int],
    units: tuple[float, float] | None = None,
) -> float:
    """Estimate tr Sigma from the mean gradients of two independent batches at the same weights.

    E |g_A - g_B|^2 = tr Sigma (1/A + 1/B), hence tr Sigma = |g_A - g_B|^2 / (1/A + 1/B), for two batches of B that is
    B/2 |g_A - g_B|^2. It shares no example-level assumption with the estimate from pieces of one batch: if the examples
    of a batch are correlated (or an effective example is not an example), the two disagree. Disjoint draws without
    replacement from a finite data set need no correction. With means over units A and B count these, and tr Sigma of a
    unit is told per example as in `noise_parts`.

    Args:
        first: Mean gradient of batch A.
        second: Mean gradient of batch B, tensors in the same order.
        sizes: Examples in A and in B.
        units: Units that they are means over; None: examples.

    Returns:
        The estimate for one example, not negative.

    Raises:
        ValueError: Sizes are not positive.
    """
    if min(sizes) < 1:
        raise ValueError(f"batch sizes are {sizes}; expected positive numbers of examples")
    weights = sizes if units is None else units
    if not min(weights) > 0:
        raise ValueError(f"batches hold {units} units; expected positive numbers")
    squares = [square_sum(a - b) for a, b in zip(first, second, strict=True)]
    distance = float(torch.stack([square.to(squares[0].device) for square in squares]).sum())
    return distance / (1 / weights[0] + 1 / weights[1]) * sum(sizes) / sum(weights)
