"""Gradient noise: unbiased estimates of |G|^2 and tr Sigma from the pieces of one batch, and from two batches.

G is the gradient of the expected loss, Sigma the covariance of the gradient of one example. The gradient of a batch of
b independent examples, averaged over them, is g = G + noise with covariance Sigma / b. Source: McCandlish et al. 2018
(arXiv 1812.06162), appendix A.1, here for any number of pieces of unequal size.

Nothing is clamped: an unbiased estimate of a small positive number is negative every second time, and cutting those off
biases the mean of many (a truth of 1e6 came out as 1e7). The ratio tr Sigma / |G|^2 is therefore never formed from one
measurement but from sums over many: see `learnmech.probes.estimators.ratio`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class NoiseParts:
    """Unbiased estimates from one batch.

    Attributes:
        grad_sq_norm: Estimate of |G|^2; it may be negative.
        noise_trace: Estimate of tr Sigma, per example; not negative.
        batch_size: Examples in all pieces together.
    """

    grad_sq_norm: float
    noise_trace: float
    batch_size: int


def noise_from_pieces(
    gradients: Sequence[Sequence[Tensor]], sizes: Sequence[int], *, population: int | None = None
) -> NoiseParts:
    """Estimate |G|^2 and tr Sigma from the gradients of disjoint pieces of one batch.

    With g_k the mean gradient of piece k of b_k examples, B = sum b_k and g = sum b_k g_k / B:

        S = sum_k b_k |g_k - g|^2 / (K - 1)
        |G|^2 = |g|^2 - S / B

    because E sum_k b_k |g_k|^2 = B |G|^2 + K tr Sigma and E |g|^2 = |G|^2 + tr Sigma / B.

    Differences are taken before squaring, so that a signal far above the noise costs no digits; sums run in float64,
    and one read-back serves all of them.

    Args:
        gradients: For each piece its mean gradient, as tensors in the same order. [K][tensors]
        sizes: Examples in each piece, b_k. [K]
        population: Size n of the data set the batch is drawn from *without replacement*, if G is to be that data set's
            gradient: g then scatters less, |G|^2 = |g|^2 - S (1/B - 1/n). With B = n it is exact. S needs no
            correction: it is unbiased for the covariance with divisor n - 1. None: independent draws.

    Returns:
        Both estimates.

    Raises:
        ValueError: There are fewer than two pieces, sizes are not positive, or they do not match.
    """  # noqa: DOC502 (raised by _check)
    _check(len(gradients), sizes, population)
    total = sum(sizes)
    squares = []
    for tensors in zip(*gradients, strict=True):
        first = tensors[0]
        mean = torch.zeros_like(first, dtype=torch.promote_types(first.dtype, torch.float32))
        for tensor, size in zip(tensors, sizes, strict=True):
            mean.add_(tensor, alpha=size / total)
        parts = [mean, *(tensor - mean for tensor in tensors)]
        squares.append(torch.stack([part.double().square().sum() for part in parts]))
    device = squares[0].device
    whole, *spread = torch.stack([part.to(device) for part in squares]).sum(dim=0).tolist()
    trace = math.fsum(size * part for size, part in zip(sizes, spread, strict=True)) / (len(sizes) - 1)
    return _parts(whole, trace, total, population)


def noise_from_squares(
    squares: Sequence[float], whole: float, sizes: Sequence[int], *, population: int | None = None
) -> NoiseParts:
    """Estimate |G|^2 and tr Sigma from squared norms alone: what gradient accumulation and data parallelism can give.

    S = (sum_k b_k |g_k|^2 - B |g|^2) / (K - 1), the same as in `noise_from_pieces`, but as a difference of squares:
    with a relative error e of the norms it is off by about e B |G|^2.

    Args:
        squares: |g_k|^2 of the mean gradient of each piece. [K]
        whole: |g|^2 of the mean gradient over all examples, g = sum b_k g_k / B.
        sizes: Examples in each piece, b_k. [K]
        population: See `noise_from_pieces`.

    Returns:
        Both estimates.

    Raises:
        ValueError: There are fewer than two pieces, sizes are not positive, or they do not match.
    """  # noqa: DOC502 (raised by _check)
    _check(len(squares), sizes, population)
    total = sum(sizes)
    pieces = math.fsum(size * square for size, square in zip(sizes, squares, strict=True))
    return _parts(whole, (pieces - total * whole) / (len(sizes) - 1), total, population)


def noise_between(first: Sequence[Tensor], second: Sequence[Tensor], sizes: tuple[int, int]) -> float:
    """Estimate tr Sigma from the mean gradients of two independent batches at the same weights.

    E |g_A - g_B|^2 = tr Sigma (1/A + 1/B), hence tr Sigma = |g_A - g_B|^2 / (1/A + 1/B), for two batches of B that is
    B/2 |g_A - g_B|^2. It shares no example-level assumption with the estimate from pieces of one batch: if the examples
    of a batch are correlated (or an effective example is not an example), the two disagree. Disjoint draws without
    replacement from a finite data set need no correction.

    Args:
        first: Mean gradient of batch A.
        second: Mean gradient of batch B, tensors in the same order.
        sizes: Examples in A and in B.

    Returns:
        The estimate, not negative.

    Raises:
        ValueError: Sizes are not positive.
    """
    if min(sizes) < 1:
        raise ValueError(f"batch sizes are {sizes}; expected positive numbers of examples")
    squares = [(a - b).double().square().sum() for a, b in zip(first, second, strict=True)]
    distance = float(torch.stack([square.to(squares[0].device) for square in squares]).sum())
    return distance / (1 / sizes[0] + 1 / sizes[1])


def _parts(whole: float, trace: float, total: int, population: int | None) -> NoiseParts:
    unseen = 1 / total - (1 / population if population else 0.0)
    return NoiseParts(grad_sq_norm=whole - trace * unseen, noise_trace=trace, batch_size=total)


def _check(pieces: int, sizes: Sequence[int], population: int | None) -> None:
    if pieces < 2 or len(sizes) != pieces:
        raise ValueError(
            f"{pieces} gradients of pieces with sizes {list(sizes)}; expected two or more, a size for each"
        )
    if min(sizes) < 1:
        raise ValueError(f"pieces have sizes {list(sizes)}; expected one example or more in each")
    if population is not None and population < sum(sizes):
        raise ValueError(f"a batch of {sum(sizes)} examples cannot come from {population} without replacement")
