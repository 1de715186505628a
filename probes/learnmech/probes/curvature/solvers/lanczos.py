"""The largest algebraic eigenvalues of a symmetric operator by band Lanczos with full reorthogonalisation."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from learnmech.probes.curvature.space import Space

ROUNDING = 4.0
"""Rounding floor of a residual in units of eps * |A|: two passes of Gram-Schmidt and one combination of the basis each
leave about one. In float32 a residual below 5e-7 |A| cannot be told from zero."""


@dataclass(frozen=True, eq=False)
class RitzPairs:
    """Approximate eigenpairs from a Krylov space; every number carries its bound.

    Attributes:
        values: Ritz values, largest algebraic first; each is at most the eigenvalue of its rank. [k]
        residuals: Bounds of |A v - value v|: within this distance of the value A has an eigenvalue. [k]
        vectors: Ritz vectors, orthonormal. [k, n]
        scout: The next Ritz vector, the best guess at what may overtake; None if the space holds no more. [n]
        products: Products with A that were spent.
        converged: Each residual is at most tol |value|, or rounding.
        asymmetry: Largest |q_i' A q_j - q_j' A q_i| seen, relative to |A|: rounding for a symmetric A.
        finite: False if a product was NaN or infinite; then the numbers above are NaN and the vectors empty.
    """

    values: Tensor
    residuals: Tensor
    vectors: Tensor
    scout: Tensor | None
    products: int
    converged: bool
    asymmetry: float
    finite: bool


def lanczos(
    matvec: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    tol: float = 1e-3,
    max_products: int = 60,
    draw: Callable[[], Tensor],
    space: Space | None = None,
) -> RitzPairs:
    r"""Return the k largest algebraic eigenvalues of a symmetric operator, k being the number of start vectors.

    The space is K = span{x, A x, A^2 x, ...} over the k start vectors x, grown by one product at a time (band Lanczos,
    Ruhe 1979). A block of k vectors with random parts sees eigenvalues of multiplicity up to k; one vector cannot.
    With the orthonormal basis Q after m products, T = Q_m' A Q_m and the columns C of A Q_m outside Q_m,
    a Ritz pair T s = theta s has the exact residual |A Q_m s - theta Q_m s| = |C s| (for k = 1: |beta_m s_m|).
    It stops as soon as all k residuals are at most tol |theta|. *Largest algebraic*, not largest in absolute value:
    {1, -3} gives 1, the eigenvalue that stability laws speak of.

    Memory: m + k vectors of n numbers. Each product is followed by one read-back of m + 1 numbers.

    Args:
        matvec: The operator, linear and symmetric.
        start: Start vectors, finite, not necessarily orthonormal; dependent ones are replaced by `draw()`. [k, n]
        tol: Relative residual to reach. The eigenvalue itself is then right to about tol^2 |theta| / gap.
        max_products: Never spend more; on reaching it the bounds tell how far it came.
        draw: Draws a random vector. [n]
        space: The space of the vectors; None: this process holds them whole.

    Returns:
        Ritz pairs with bounds.

    Raises:
        ValueError: There are more start vectors than dimensions or products.
    """
    k, n = start.shape
    whole = space or Space(n, start.dtype, start.device)
    if k > whole.dimension or k > max_products:
        raise ValueError(
            f"{k} eigenvalues of a {whole.dimension} x {whole.dimension} matrix with {max_products} products: "
            "k must not exceed either"
        )
    krylov = _Krylov(whole, start, draw)
    product = 0
    while True:
        product += 1
        if not krylov.extend(matvec(krylov.basis[product - 1])):
            return _not_finite(start, product)
        values, residuals, combinations = krylov.ritz()
        # a residual holds the rounding once already: zero and everything else below rounding count as converged
        converged = bool(np.all(residuals[:k] <= np.maximum(tol * np.abs(values[:k]), 2 * krylov.rounding)))
        if product >= k and converged:
            break
        # invariant space: the random parts of the start hold nothing that has not been found
        if product in (max_products, len(krylov.basis)):
            break
    wanted = krylov.combine(combinations[: k + 1])
    return RitzPairs(
        values=torch.from_numpy(values[:k].copy()),
        residuals=torch.from_numpy(residuals[:k].copy()),
        vectors=wanted[:k],
        scout=wanted[k] if len(wanted) > k else None,
        products=product,
        converged=converged,
        asymmetry=krylov.asymmetry(),
        finite=True,
    )


class _Krylov:
    """An orthonormal basis q_1, q_2, ... of the Krylov space and the coefficients q_i' A q_j gathered on the way."""

    def __init__(self, space: Space, start: Tensor, draw: Callable[[], Tensor]) -> None:
        self.space = space
        self.basis: list[Tensor] = []
        self.columns: list[list[float]] = []  # columns[j][i] = q_i' A q_j
        self.dropped: list[float] = []  # norm of the part of A q_j that was too small to span a direction
        self.norm = 0.0  # largest |A q| seen: a lower bound of |A|
        self.eps = torch.finfo(start.dtype).eps
        for row in start:
            self._append(row, draw)

    @property
    def rounding(self) -> float:
        return ROUNDING * self.eps * self.norm

    def _append(self, vector: Tensor, draw: Callable[[], Tensor]) -> None:
        length = float(self.space.norm(vector))
        while True:
            candidate = vector / length if length > 0 else vector
            for _ in range(2):
                for q in self.basis:
                    candidate = candidate - self.space.dot(q, candidate) * q
            left = float(self.space.norm(candidate))
            if left > 100 * self.eps:  # otherwise what is left of the unit vector is rounding
                self.basis.append(candidate / left)
                return
            vector = draw()
            length = float(self.space.norm(vector))

    def extend(self, image: Tensor) -> bool:
        """Take in A q_j for the next j; False if it is not finite."""
        before = self.space.norm(image)
        coefficients = torch.zeros(len(self.basis), dtype=torch.float64, device=image.device)
        for _ in range(2):  # twice is enough (Giraud et al. 2005)
            overlap = self.space.dots(self.basis, image)
            for q, c in zip(self.basis, overlap, strict=True):
                image = torch.addcmul(image, q, c.to(image.dtype), value=-1)
            coefficients += overlap
        after = self.space.norm(image)
        *column, length, rest = torch.cat([coefficients, before[None], after[None]]).tolist()  # the one read-back
        if not math.isfinite(length) or not math.isfinite(rest):
            return False
        self.norm = max(self.norm, length)
        if rest > self.rounding and len(self.basis) < self.space.dimension:
            self.basis.append(image / rest)
            column.append(rest)
            self.dropped.append(0.0)
        else:
            self.dropped.append(rest)
        self.columns.append(column)
        return True

    def _coefficients(self) -> np.ndarray:
        m = len(self.columns)
        matrix = np.zeros((len(self.basis), m))
        for j, column in enumerate(self.columns):
            matrix[: len(column), j] = column
        return matrix

    def ritz(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return Ritz values (descending), their residual bounds, and the combinations of the basis, one per row."""
        m = len(self.columns)
        matrix = self._coefficients()
        projected = (matrix[:m] + matrix[:m].T) / 2
        values, combinations = np.linalg.eigh(projected)
        outside = np.linalg.norm(matrix[m:] @ combinations, axis=0)
        residuals = np.hypot(outside, np.asarray(self.dropped) @ np.abs(combinations)) + self.rounding
        return values[::-1], residuals[::-1], combinations.T[::-1]

    def combine(self, combinations: np.ndarray) -> Tensor:
        """Return the combinations of basis vectors, normalised again [rows, n]."""
        rows = []
        for weights in combinations:
            total = torch.zeros_like(self.basis[0])
            for q, weight in zip(self.basis, weights.tolist(), strict=False):
                total.add_(q, alpha=weight)
            rows.append(self.space.unit(total))
        return torch.stack(rows)

    def asymmetry(self) -> float:
        m = len(self.columns)
        projected = self._coefficients()[:m]
        return float(np.abs(projected - projected.T).max() / self.norm) if self.norm > 0 else 0.0


def _not_finite(start: Tensor, products: int) -> RitzPairs:
    k, n = start.shape
    nothing = torch.full((k,), math.nan, dtype=torch.float64)
    return RitzPairs(
        nothing,
        nothing.clone(),
        start.new_empty((0, n)),
        None,
        products,
        converged=False,
        asymmetry=math.nan,
        finite=False,
    )
