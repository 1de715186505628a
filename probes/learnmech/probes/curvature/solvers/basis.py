"""An orthonormal basis, some of it multiplied by the matrix: what Ritz pairs are made of, and how it shrinks."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from learnmech.probes.curvature.objective import Unmeasurable
from learnmech.probes.curvature.space import SLICE, Space

ROUNDING = 4.0
"""Rounding floor of a residual in units of eps * |A|: two passes of Gram-Schmidt and one combination of the basis each
leave about one. In float32 a residual below 5e-7 |A| cannot be told from zero."""


@dataclass(frozen=True, eq=False)
class Ritz:
    """All Ritz pairs of a basis, largest algebraic first.

    Attributes:
        values: Ritz values theta. [m]
        residuals: Bounds of |A y - theta y| for each Ritz vector y, rounding included. [m]
        combinations: Ritz vectors as combinations of the multiplied basis vectors, one per row. [m, m]
        outside: The part of A y outside the multiplied vectors, in terms of the others, one per column. [others, m]
    """

    values: np.ndarray
    residuals: np.ndarray
    combinations: np.ndarray
    outside: np.ndarray


class Basis:
    """Orthonormal vectors q, of which some have been multiplied: A q is known in terms of the basis.

    With Q the multiplied vectors and U the others, A Q = Q T + U C exactly: T = Q'AQ, C = U'AQ. A Ritz pair
    T s = theta s has the residual |A Q s - theta Q s| = |C s|. The order of multiplication does not matter (Ruhe
    1979 takes vectors as they came).

    Every decision here rests on numbers that are reduced over processes: all of them decide alike.

    Args:
        space: The space of the vectors.
        eps: Relative spacing of their type.
    """

    def __init__(self, space: Space, eps: float) -> None:
        self.space = space
        self.vectors: list[Tensor] = []
        self.multiplied: list[int] = []
        self.waiting: list[int] = []
        self.norm = 0.0  # largest |A q| seen: a lower bound of |A|
        self.asymmetry = 0.0  # largest |q_i'A q_j - q_j'A q_i| seen
        self.eps = eps
        self._columns: list[np.ndarray] = []  # columns[j][i] = q_i'A q_j for the j-th multiplied vector
        self._dropped: list[float] = []  # norm of the part of A q_j that was too small to span a direction

    @property
    def rounding(self) -> float:
        """What a residual may be off by."""
        return ROUNDING * self.eps * self.norm

    def add(self, vector: Tensor, draw: Callable[[], Tensor] | None = None) -> bool:
        """Add a direction to the waiting ones, orthonormalised; what depends on the others is replaced or left out.

        Args:
            vector: The direction; zero counts as dependent. [size]
            draw: Draws a replacement; None: leave it out.
        """
        while True:
            length = float(self.space.norm(vector))
            if 0 < length < math.inf:
                candidate = vector / length
                left = 1.0
                for _ in range(2 if self.vectors else 0):
                    self._subtract(candidate, self.space.dots(self.vectors, candidate).tolist())
                    left = float(self.space.norm(candidate))
                if left > 100 * self.eps:  # otherwise what is left of the unit vector is rounding
                    self.waiting.append(len(self.vectors))
                    self.vectors.append(candidate.div_(left))
                    return True
            if draw is None or len(self.vectors) >= self.space.dimension:
                return False
            vector = draw()

    def multiply(self, index: int, matvec: Callable[[Tensor], Tensor]) -> bool:
        """Take in A q for a waiting vector q; False if it is not finite.

        Raises:
            Unmeasurable: Its numbers are so small that their type holds them at less than full precision.
        """
        vector = self.vectors[index]
        image = matvec(vector)
        if image.data_ptr() == vector.data_ptr():  # the identity, by a function that returns its argument
            image = image.clone()
        largest = torch.finfo(image.dtype).max
        column = [0.0] * len(self.vectors)
        for _ in range(2):  # twice is enough (Giraud et al. 2005)
            overlap = self.space.dots(self.vectors, image).tolist()
            if not all(abs(c) <= largest for c in overlap):
                return False
            self._subtract(image, overlap)
            column = [one + other for one, other in zip(column, overlap, strict=True)]
        rest = float(self.space.norm(image))
        length = math.hypot(*column, rest)  # |A q|, by Pythagoras
        if not length <= largest:
            return False
        if 0 < length < self.space.smallest:
            raise Unmeasurable(
                f"the numbers of a product are about {length / math.sqrt(self.space.dimension):.1g}, less than "
                f"{self.space.dtype} holds at full precision: multiply the loss by a large number"
            )
        self.norm = max(self.norm, length)
        self.waiting.remove(index)
        self.multiplied.append(index)
        if rest > self.rounding and len(self.vectors) < self.space.dimension:
            self.waiting.append(len(self.vectors))
            self.vectors.append(image.div_(rest))
            column.append(rest)
            rest = 0.0
        self._dropped.append(rest)
        self._columns.append(np.array(column))
        return True

    def _subtract(self, vector: Tensor, weights: Sequence[float]) -> None:
        """Subtract a combination of the basis from a vector, in place."""
        for q, weight in zip(self.vectors, weights, strict=True):
            vector.sub_(q, alpha=weight)

    def ritz(self) -> Ritz:
        """Return the Ritz pairs of what has been multiplied."""
        matrix = np.zeros((len(self.vectors), len(self.multiplied)))
        for j, column in enumerate(self._columns):
            matrix[: len(column), j] = column
        inner = matrix[self.multiplied]
        self.asymmetry = max(self.asymmetry, float(np.abs(inner - inner.T).max()))
        values, combinations = np.linalg.eigh((inner + inner.T) / 2)
        values, combinations = values[::-1], combinations.T[::-1]
        outside = matrix[self.waiting] @ combinations.T
        lost = np.abs(combinations) @ self._dropped
        residuals = np.sqrt((outside * outside).sum(0) + lost * lost) + self.rounding
        return Ritz(values, residuals, combinations, outside)

    def shrink(self, ritz: Ritz, keep: Sequence[int]) -> None:
        """Replace the multiplied vectors by some Ritz vectors: a thick restart (Wu & Simon 2000).

        The waiting vectors stay, and A Y = Y Theta + U C still holds exactly for the Ritz vectors Y that are kept.
        """
        self._combine(_padded(ritz.combinations[list(keep)], len(self.waiting)))
        kept, waiting = len(keep), len(self.waiting)
        self.multiplied, self.waiting = list(range(kept)), list(range(kept, kept + waiting))
        self._dropped = list(np.abs(ritz.combinations[list(keep)]) @ np.array(self._dropped))
        self._columns = []
        for place, index in enumerate(keep):
            inner = np.zeros(kept)
            inner[place] = ritz.values[index]
            self._columns.append(np.concatenate([inner, ritz.outside[:, index]]))

    def extracted(self, ritz: Ritz, wanted: Sequence[int], scout: np.ndarray | None) -> list[Tensor]:
        """Give up the basis for some of its Ritz vectors, and a last vector, all of unit length.

        Args:
            ritz: The Ritz pairs.
            wanted: Places of those wanted.
            scout: Weights of the multiplied vectors and of the waiting ones in the last vector; None: without it.
        """
        rows = _padded(ritz.combinations[list(wanted)], len(self.waiting))
        if scout is not None:
            rows = np.vstack([rows, scout])
        self._combine(rows)
        del self.vectors[len(rows) :]
        return [self.space.unit(vector) for vector in self.vectors]

    def _combine(self, rows: np.ndarray) -> None:
        """Put combinations of multiplied and waiting vectors in front, in place, and the waiting ones behind."""
        sources = [self.vectors[index] for index in (*self.multiplied, *self.waiting)]
        for begin in range(0, self.space.size, SLICE):
            parts = [q[begin : begin + SLICE] for q in sources]
            made = [_sum(parts, weights) for weights in rows.tolist()]
            for part, total in zip(parts, made, strict=False):
                part.copy_(total)
        self.vectors = sources[: len(rows)] + sources[len(self.multiplied) :]


def _sum(parts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    total = parts[0] * weights[0]
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        if weight:
            total.add_(part, alpha=weight)
    return total


def _padded(rows: np.ndarray, waiting: int) -> np.ndarray:
    """Return weights of the multiplied vectors with zeros for the waiting ones."""
    return np.hstack([rows, np.zeros((len(rows), waiting))])
