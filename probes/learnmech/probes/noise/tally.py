"""What one update says of its noise, as one row of numbers that adds up over processes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learnmech.probes.noise.contributions import Sums, packed

EXACT = 2e-3
"""Relative distance of the sum of what was seen from the gradient that rounding explains: float32 leaves 1e-6, a
reduction in bfloat16 over 8 processes 1e-3."""
COARSE = 5e-2
"""The same where half precision is in the training step."""

SAME = 1e-3
"""Relative distance from one below which a factor is taken for one: clipping by less changes a square by 0.2 %."""


@dataclass(frozen=True, slots=True)
class Tally:
    """A row: what was seen on the way to the gradient, and the gradient itself.

    Attributes:
        row: Packed `Sums` of |h_k|^2; |g|^2 of each scope; some numbers of sum_k h_k and the same of g.
        scopes: Number of scopes.
        samples: Number of those numbers.
    """

    row: Tensor
    scopes: int
    samples: int

    @classmethod
    def of(cls, sums: Sums, whole: Tensor, contributed: Tensor, gradient: Tensor) -> "Tally":
        """Put a row together.

        Args:
            sums: Of what this process contributed to the mean over all processes.
            whole: This process's share of |g|^2. [scopes]
            contributed: Some numbers of its sum_k h_k. [samples]
            gradient: The same numbers of g; zero in all processes but one. [samples]
        """
        row = torch.cat([sums.pack(), whole.double(), contributed.double(), gradient.double()])
        return cls(row, sums.scopes, len(contributed))

    def read(self, numbers: Sequence[float]) -> tuple[Sequence[float], Sequence[float], "Witness"]:
        """Take the numbers of the row apart, once they are here: sums, |g|^2, and how h and g belong together."""
        first = packed(self.scopes)
        second = first + self.scopes
        third = second + self.samples
        return numbers[:first], numbers[first:second], witness(numbers[second:third], numbers[third:])


@dataclass(frozen=True, slots=True)
class Witness:
    """How what was seen on the way belongs to the gradient: sum_k h_k = factor * g, up to a rest.

    Attributes:
        factor: What g was divided by since: a loss scale, or clipping; NaN if there was nothing to compare.
        rest: Relative size of what the factor does not explain.
    """

    factor: float
    rest: float

    @property
    def changed(self) -> bool:
        """Whether the gradient was divided by something since its pieces were seen."""
        return abs(self.factor - 1.0) > SAME


def witness(contributed: Sequence[float], gradient: Sequence[float]) -> Witness:
    """Compare numbers of sum_k h_k with the same numbers of g.

    >>> witness([2.0, 4.0], [1.0, 2.0])
    Witness(factor=2.0, rest=0.0)
    """
    size = math.fsum(g * g for g in gradient)
    whole = math.fsum(h * h for h in contributed)
    if not (math.isfinite(size) and math.isfinite(whole) and size > 0 and whole > 0):
        return Witness(math.nan, math.nan)
    factor = math.fsum(h * g for h, g in zip(contributed, gradient, strict=True)) / size
    rest = math.fsum((h - factor * g) ** 2 for h, g in zip(contributed, gradient, strict=True))
    return Witness(factor, math.sqrt(rest / whole))
