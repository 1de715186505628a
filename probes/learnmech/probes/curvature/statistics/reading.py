"""What one random vector says of a whole spectrum, beside the part of it that is known."""

from dataclasses import dataclass

import numpy as np

from learnmech.probes.curvature.statistics.quadrature import Rule


@dataclass(frozen=True, eq=False, kw_only=True)
class Reading:
    r"""A symmetric n x n matrix A in two parts: its projection on a known subspace, and one look at the rest A_c.

    The look is a rule from a vector uniform on the unit sphere of the complement, of dimension N. For it
    E[N q'A_c q] = tr A_c, E[N |A_c q|^2] = |A_c|_F^2, and E mu = the density of the eigenvalues of A_c.

    Attributes:
        known: Eigenvalues of the projection on the known subspace. [n - N]
        known_square: |A|_F^2 - |A_c|_F^2.
        coupling: Bound of the norm of the part of A between the two.
        couplings: Its rank.
        dimension: N; 0 if the known subspace is everything that is to be said.
        rule: Quadrature in the complement.
    """

    known: np.ndarray
    known_square: float
    coupling: float
    couplings: int
    dimension: int
    rule: Rule

    @property
    def size(self) -> int:
        """Dimension n of the whole space."""
        return len(self.known) + self.dimension

    @property
    def trace(self) -> float:
        """Unbiased estimate of tr A."""
        return float(self.known.sum()) + self.dimension * self.rule.moments[0]

    @property
    def square(self) -> float:
        """Unbiased estimate of |A|_F^2."""
        return self.known_square + self.dimension * self.rule.moments[1]

    @property
    def variances(self) -> tuple[float, float]:
        """Estimates of the variances of `trace` and `square`, by what is known of their distribution.

        For q uniform on the sphere Var(N q'Bq) = 2 N / (N + 2) (|B|_F^2 - (tr B)^2 / N), with B = A_c and B = A_c^2.
        """
        n = self.dimension
        if n == 0:
            return 0.0, 0.0
        first, second, fourth = self.rule.moments
        scale = 2 * n**2 / (n + 2)
        # One step does not know the fourth moment: it takes the least, and leaves the variance to the scatter. A moment
        # is at least the square of the one it belongs to, but for rounding
        return scale * max(second - first**2, 0.0), scale * max(fourth - second**2, 0.0)

    def shares(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bound the share of the eigenvalues below each x by the known part and the rule [k], [k]."""
        known = np.searchsorted(self.known, at, side="right")
        lower, upper = self.rule.brackets(at)
        return (known + self.dimension * lower) / self.size, (known + self.dimension * upper) / self.size
