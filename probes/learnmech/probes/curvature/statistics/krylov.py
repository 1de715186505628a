"""A chain of Krylov spaces, each from a random start in the complement of those before it."""

import math

import numpy as np
import torch
from torch import Tensor

from learnmech.probes.curvature.operators import Operator
from learnmech.probes.curvature.statistics.quadrature import Rule
from learnmech.probes.curvature.statistics.reading import Reading

ROUNDING = 4.0
"""Rounding of what is left of a product after Gram-Schmidt, in units of eps |A|: two passes leave one or two each."""


class Chain:
    r"""Orthonormal bases of Krylov spaces K_1, K_2, ... of a symmetric operator A, gathered run by run.

    Run j draws a random vector, takes its part in the complement of the span P of all earlier runs, and spans
    K_j = {q, A_c q, A_c^2 q, ...} with A_c = (I - P) A (I - P), by Lanczos with full reorthogonalisation. So

    - the large eigenvalues, which come out first, are known exactly from the first runs on, and the random vectors of
      the later ones see the rest alone: the idea of Hutch++ (Meyer et al. 2021, arXiv 2010.09649), with the Krylov
      space that the density needs anyway as its sketch (Chen & Hallman 2023, arXiv 2205.01736);
    - A couples each run to everything after it by one vector only, the residual of Lanczos. Without these couplings A
      would be the direct sum of Q'AQ and A_c; each has one positive and one negative eigenvalue, so that the numbers of
      eigenvalues of A and of the sum below any x differ by at most one per run (Weyl).

    The start of a run is uniform on the unit sphere of a complement that does not depend on it: that is all that
    unbiasedness needs.

    Memory: one vector of `space.size` numbers per product of the runs that are kept. Each product is followed by four
    read-backs: its length, the overlaps with the basis, twice, and the length of what is left.

    Args:
        operator: A.
        generator: Random numbers of its own.

    Attributes:
        finite: False once a product was NaN or infinite.
        norm: Largest |A q| of a unit vector q seen: a lower bound of |A|.
    """

    def __init__(self, operator: Operator, generator: torch.Generator) -> None:
        self.operator = operator
        self.space = operator.space
        self.finite = True
        self.norm = 0.0
        self._generator = generator
        self._basis: list[Tensor] = []
        self._columns: list[list[float]] = []  # columns[j][i] = q_i' A q_j for i <= j, and beyond within a run
        self._lengths: list[float] = []  # |A q_j|
        self._starts: list[int] = []  # index of the first vector of each run
        self._ends: list[int] = []  # and of the last
        self._noise: list[float] = []
        self._asymmetry = 0.0
        self._eps = torch.finfo(self.space.dtype).eps

    @property
    def left(self) -> int:
        """Dimensions outside all runs so far."""
        return self.space.dimension - len(self._basis)

    @property
    def noise(self) -> float:
        """Root mean square error of an entry x'A y between random unit vectors, seen on those that are zero by rights.

        A run is orthogonal to A x of every earlier start x, and so is its own start y; then x'A y differs from zero by
        the error of the product A y alone. Zero after one run, which has nothing to compare with.
        """
        return math.sqrt(math.fsum(x * x for x in self._noise) / len(self._noise)) if self._noise else 0.0

    @property
    def asymmetry(self) -> float:
        """Largest entry q_i'A q_j met that is zero for a symmetric A, relative to |A|."""
        return self._asymmetry / self.norm if self.norm > 0 else 0.0

    def run(self, steps: int, *, keep: bool = True) -> Reading | None:
        """Make a run of up to `steps` products, fewer if the complement or an invariant space ends it.

        Args:
            steps: Most products.
            keep: Count its space as known from now on.

        Returns:
            What this run alone says of the spectrum; None if there is nothing left, or a product was not finite.
        """
        start = self._start()
        if start is None:
            return None
        projected, square, coupling = self._known()
        dimension, first = self.left, len(self._basis)
        self._basis.append(start)
        leaks: list[float] = []
        while len(leaks) < steps:
            following, leak = self._extend(first)
            if not self.finite:
                return None
            leaks.append(leak)
            if following is None or len(leaks) == steps:
                break
            self._basis.append(following)
        diagonal = [self._columns[j][j] for j in range(first, len(self._basis))]
        couplings = len(self._ends)
        if keep:
            self._starts.append(first)
            self._ends.append(len(self._basis) - 1)
        else:
            del self._basis[first:], self._columns[first:], self._lengths[first:]
        return Reading(
            known=np.linalg.eigvalsh(projected),
            known_square=square,
            coupling=coupling,
            couplings=couplings,
            dimension=dimension,
            rule=Rule(np.array(diagonal), np.array(leaks)),
        )

    def whole(self) -> Reading:
        """Return the reading of all runs together, exact if they fill the space."""
        projected, square, coupling = self._known()
        return Reading(
            known=np.linalg.eigvalsh(projected),
            known_square=square,
            coupling=coupling,
            couplings=len(self._ends) if self.left else 0,
            dimension=0,
            rule=Rule(np.zeros(1), np.zeros(1)),
        )

    def top(self) -> tuple[Tensor, float]:
        """Return the unit vector of largest Rayleigh quotient in the span of all runs, and the quotient."""
        values, combinations = np.linalg.eigh(self._projected())
        total = torch.zeros_like(self._basis[0])
        for q, weight in zip(self._basis, combinations[:, -1].tolist(), strict=True):
            total.add_(q, alpha=weight)
        return self.space.unit(total), float(values[-1])

    def _start(self) -> Tensor | None:
        if self.left <= 0:
            return None
        vector = self.space.unit(self.space.draw(self._generator))
        for _ in range(2):
            for q, overlap in zip(self._basis, self.space.dots(self._basis, vector), strict=True):
                vector = torch.addcmul(vector, q, overlap.to(vector.dtype), value=-1)
        length = float(self.space.norm(vector))
        # in a complement of dimension d, d / n of the squared length is left: rounding only where d is zero in effect
        return vector / length if length > 100 * self._eps else None

    def _extend(self, first: int) -> tuple[Tensor | None, float]:
        """Multiply the last vector; return the next one of the run, None if there is none, and beta."""
        last = len(self._basis) - 1
        image = self.operator.matvec(self._basis[last])
        before = self.space.norm(image)
        coefficients = torch.zeros(last + 1, dtype=torch.float64, device=image.device)
        for _ in range(2):  # twice is enough (Giraud et al. 2005)
            overlap = self.space.dots(self._basis, image)
            for q, c in zip(self._basis, overlap, strict=True):
                image = torch.addcmul(image, q, c.to(image.dtype), value=-1)
            coefficients += overlap
        after = self.space.norm(image)
        *column, length, rest = torch.cat([coefficients, before[None], after[None]]).tolist()
        if not math.isfinite(length) or not math.isfinite(rest):
            self.finite = False
            return None, math.nan
        self.norm = max(self.norm, length)
        self._columns.append(column)
        self._lengths.append(length)
        # A q_i lies in the basis before q_j, but for the neighbour in a run and the ends of earlier runs
        zeros = {i: x for i, x in enumerate(column[:last]) if i not in self._ends and not first <= i == last - 1}
        self._asymmetry = max([self._asymmetry, *map(abs, zeros.values())])
        if last == first:
            self._noise += [zeros[i] for i in self._starts if i in zeros]
        if rest <= ROUNDING * self._eps * self.norm or last + 1 >= self.space.dimension:
            return None, 0.0
        return image / rest, rest

    def _projected(self) -> np.ndarray:
        """Return Q' A Q; the upper triangle was measured."""
        upper = np.zeros((len(self._columns), len(self._columns)))
        for j, column in enumerate(self._columns):
            upper[: j + 1, j] = column[: j + 1]
        return upper + np.triu(upper, 1).T

    def _known(self) -> tuple[np.ndarray, float, float]:
        """Return Q'AQ, |A|_F^2 less that of A_c, and a bound of the norm of the coupling (I - P) A P."""
        projected = self._projected()
        inside, lengths = float(np.square(projected).sum()), math.fsum(length**2 for length in self._lengths)
        outside = max(lengths - inside, 0.0)  # |(I - P) A P|_F^2, below zero only by rounding
        return projected, inside + 2 * outside, math.sqrt(outside)
