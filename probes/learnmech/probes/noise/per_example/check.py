"""Does sum_i h_i equal g? A projection of both on random directions tells, without waiting for the device."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from learnmech.probes.noise.per_example.forms import Dense, Form, wide_type

DIRECTIONS = 4
"""Random directions a_k b_k^T for a parameter: with M = g - sum h, E (a^T M b)^2 = |M|^2. A missing part of the size of
g itself stays under `TOLERANCE` in all four with a probability below 2e-5 (at the worst, where M has rank one, each is
a product of two normal numbers), and the directions are others at each measurement."""

TOLERANCE = 0.01
"""Part of |g| that may be missing, which changes a squared norm by 2 % at most. Rounding leaves 1e-6 in float32."""

HALF_TOLERANCE = 0.1
"""The same where gradients have 8 or 11 bits. In bfloat16, rounding left up to 0.004 in a small transformer."""

FLOOR = 1e-5
"""Part of the norm of the whole gradient that is rounding: gradients that are zero by symmetry, such as a key's bias
under softmax, are nothing else. 80 times the spacing of float32."""


class Directions:
    """Random directions for parameters seen as matrices: one set of vectors for each length, drawn once.

    Args:
        seed: Seed of a generator of its own.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._drawn: dict[tuple[torch.device, torch.dtype, int, str], Tensor] = {}

    def of(self, like: Tensor, length: int, side: str) -> Tensor:
        """Return vectors for the `left` or `right` side of a matrix, [DIRECTIONS, length]."""
        key = (like.device, like.dtype, length, side)
        if key not in self._drawn:
            generator = torch.Generator(like.device).manual_seed(self._seed + len(self._drawn))
            self._drawn[key] = torch.randn(
                DIRECTIONS, length, generator=generator, device=like.device, dtype=like.dtype
            )
        return self._drawn[key]

    def clear(self) -> None:
        """Let go of them."""
        self._drawn.clear()


def evidence(forms: Sequence[Form], gradient: Tensor, directions: Directions) -> Tensor:
    """Return estimates of |g - sum_i h_i|^2 and |g|^2 for one parameter, float64 [2].

    The first is exact where h_i is at hand. Where a view hides the places of the numbers, it is (|g| - |sum_i h_i|)^2,
    which cannot exceed it.
    """
    sparse = gradient.layout is not torch.strided
    real = gradient._values() if sparse else gradient  # noqa: SLF001 (`values` wants it coalesced, which would wait)
    real = real if real.dtype == torch.float64 else real.float()
    square = real.square().sum(dtype=wide_type(real))
    first = forms[0]
    if isinstance(first, Dense) and not sparse:
        ours = first.values.sum(0)
        if not first.moved:
            return torch.stack([(ours - real.reshape(-1)).square().sum(dtype=square.dtype), square])
        return torch.stack([(ours.square().sum(dtype=square.dtype).sqrt() - square.sqrt()).square(), square])
    rows, columns = gradient.shape[0], gradient.shape[1:].numel()
    a, b = directions.of(real, rows, "left"), directions.of(real, columns, "right")
    seen = torch.stack([form.project(a, b) for form in forms if not isinstance(form, Dense)]).sum(0)
    if sparse:
        index = gradient._indices()[0]  # noqa: SLF001 (the same)
        there = (a[:, index] * (real @ b.T).T).sum(1)
    else:
        there = ((a @ real.reshape(rows, columns)) * b).sum(1)
    return torch.stack([(seen - there).square().mean(), square])


def refuted(evidence: Mapping[str, Sequence[float]], *, half: bool) -> dict[str, str]:
    """Return the parameters whose sum_i h_i is not g, with the reason.

    Args:
        evidence: For each parameter the two numbers of its evidence.
        half: Some gradients were computed in 16 bits.
    """
    whole = sum(square for _, square in evidence.values())
    tolerance = HALF_TOLERANCE if half else TOLERANCE
    found = {}
    for name, (missing, square) in evidence.items():
        if missing > tolerance**2 * square + (FLOOR * tolerance / TOLERANCE) ** 2 * whole:
            share = math.sqrt(missing / square) if square else math.inf
            found[name] = f"contributions seen do not add up to its gradient: {share:.2g} of its norm is missing"
    return found
