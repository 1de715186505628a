"""The outermost eigenvalues of a symmetric operator by thick-restart band Lanczos with full reorthogonalisation."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from learnmech.probes.curvature.solvers.basis import Basis, Ritz
from learnmech.probes.curvature.solvers.stopping import Goal, Trust
from learnmech.probes.curvature.space import Space

ENDS = ("largest", "smallest", "both")

EXTRA = 4
"""Ritz vectors kept in a restart beyond the wanted ones. On 40 spectra (20 outliers over a bulk, evenly spread and
crowded) at tol = 1e-3, times the products of an unlimited basis (17, 34 and 44 for k = 1, 3 and 5): k = 1: 1.13 with 8
vectors, 1.03 with 12; k = 3: 1.45 with 12, 1.11 with 22; k = 5: 1.38 with 20, 1.21 with 26. With two extra ones it
was less in the smallest basis for k > 1 and more in all others."""

SMALLEST_BASIS = 4
"""Vectors beyond the wanted ones without which a restart would keep nothing of what a product found."""


@dataclass(frozen=True, eq=False)
class RitzPairs:
    """Approximate eigenpairs from a Krylov space; every number carries its bound.

    Attributes:
        values: Ritz values, the outermost first: each lies inside the spectrum, on the inner side of the eigenvalue of
            its rank. With `both`, the largest ones and then the smallest ones. [k] or [2 k]
        residuals: Bounds of |A v - value v|: within this distance of the value A has an eigenvalue.
        vectors: Ritz vectors, orthonormal. [k, n] or [2 k, n]
        scout: The best guess at what may overtake: the next Ritz vector after one power step, which costs nothing;
            None if the space holds no more. [n]
        products: Products with A that were spent.
        converged: Every pair reached the goal, or rounding.
        asymmetry: Largest |q_i' A q_j - q_j' A q_i| seen, relative to |A|: rounding for a symmetric A.
        finite: False if a product was NaN or infinite; then the numbers above are NaN and the vectors empty.
        errors: Estimates of |eigenvalue of this rank - value|, see `learnmech.probes.curvature.solvers.stopping`.
        second: The next Ritz value of the first end, relative to the last wanted one.
    """

    values: Tensor
    residuals: Tensor
    vectors: Tensor
    scout: Tensor | None
    products: int
    converged: bool
    asymmetry: float
    finite: bool
    errors: Tensor
    second: float = 0.0


def lanczos(
    matvec: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    k: int | None = None,
    which: str = "largest",
    tol: float = 1e-3,
    accuracy: float | None = None,
    trust: Trust | None = None,
    max_products: int = 60,
    max_basis: int | None = None,
    draw: Callable[[], Tensor],
    space: Space | None = None,
) -> RitzPairs:
    r"""Return the k largest, or smallest, or both, algebraic eigenvalues of a symmetric operator.

    The space is K = span{x, A x, A^2 x, ...} over the start vectors x, grown by one product at a time (band Lanczos,
    Ruhe 1979). A block of k vectors with random parts sees eigenvalues of multiplicity up to k; one vector cannot.
    With the orthonormal basis Q of what has been multiplied, T = Q'A Q, and the columns C of A Q outside Q,
    a Ritz pair T s = theta s has the exact residual |A Q s - theta Q s| = |C s|. First all start vectors are
    multiplied, then always the direction that carries most of the residuals not yet small enough. *Largest
    algebraic*, not largest in absolute value: {1, -3} gives 1, the eigenvalue that stability laws speak of, and -3 as
    the smallest.

    It stops when all residuals are at most tol |theta|. The eigenvalue itself is then right to about
    tol^2 |theta| / gap, so that for a number, and no vector, `accuracy` is far cheaper: it stops when the estimated
    error of every eigenvalue is at most accuracy |theta| (see `Goal`). Both are asked of the space that was seen: an
    eigenvector to which all start vectors happen to be orthogonal is not in it.

    When the basis has `max_basis` vectors, it is replaced by the best Ritz vectors and what waits to be multiplied
    (thick restart, Wu & Simon 2000), in place. **Memory**, in vectors of n numbers: the basis, which holds m + b
    vectors after m products from b start vectors and never more than `max_basis`, and two more during a product. In
    float32 that is 4 bytes per parameter and vector: 28 bytes per parameter for k = 1, b = 2 and the usual 3 products,
    and 4 (max_basis + 2) at most; `max_basis` is at least 2 k + 4, so that k vectors can be had for 8 k + 24 bytes a
    parameter. The start vectors, b more, belong to the caller; k + 1 vectors are returned.

    LOBPCG (Knyazev 2001) multiplies k vectors an iteration and minimises over three times as many, of the same Krylov
    space. SciPy's took 18.5 and 42.5 products for k = 1 and 3 on the 40 spectra of `EXTRA` where this took 18 and 33.

    Each product is followed by three read-backs: the overlaps with the basis, twice, and a length.

    Args:
        matvec: The operator, linear and symmetric.
        start: Start vectors, finite, not necessarily orthonormal; dependent ones are replaced by `draw()`. [b, n]
        k: How many eigenvalues of each end; None: as many as there are start vectors.
        which: `largest`, `smallest`, or `both` from one space.
        tol: Relative residual to reach.
        accuracy: Relative error of the eigenvalues to reach instead.
        trust: How start vectors beyond the first k are treated, and what lay below the wanted ones earlier.
        max_products: Never spend more; on reaching it the bounds tell how far it came.
        max_basis: Most basis vectors to hold; None: no bound but `max_products`.
        draw: Draws a random vector. [n]
        space: The space of the vectors; None: this process holds them whole.

    Returns:
        Ritz pairs with bounds.

    Raises:
        ValueError: There are more eigenvalues wanted than dimensions, products or room in the basis.
    """  # noqa: DOC502 (raised by _check)
    b, n = start.shape
    k = b if k is None else k
    whole = space or Space(n, start.dtype, start.device)
    ends = 2 if which == "both" else 1
    _check(k, ends, b, whole, max_products, max_basis, which)
    basis = Basis(whole, torch.finfo(start.dtype).eps)
    for row in start:
        basis.add(row, draw)
    goal = Goal(k, which, tol, accuracy, trust or Trust())
    product = 0
    while True:
        product += 1
        if not basis.multiply(goal.choice(basis), matvec):
            return _not_finite(ends * k, n, start, product)
        ritz = basis.ritz()
        goal.see(ritz, basis, product)
        if goal.reached or product == max_products or not basis.waiting:
            break
        if product == 1 and goal.hopeless and max_products > ends * k:
            basis = Basis(whole, basis.eps)
            for _ in range(k):
                basis.add(draw(), draw)
            goal.start_over()
        if max_basis is not None and len(basis.vectors) >= max_basis:
            _shrink(basis, ritz, goal, k)
    return _pairs(basis, ritz, goal, product)


def _shrink(basis: Basis, ritz: Ritz, goal: Goal, k: int) -> None:
    """Keep the wanted Ritz vectors and a few beyond; with few vectors in all, at least free room for two products."""
    room = len(ritz.values) - 2
    kept = goal.outermost(ritz, min(k + EXTRA, room))
    basis.shrink(ritz, kept)


def _pairs(basis: Basis, ritz: Ritz, goal: Goal, products: int) -> RitzPairs:
    wanted = goal.wanted(ritz)
    scout = goal.scout(ritz)
    asymmetry = basis.asymmetry / basis.norm if basis.norm > 0 else 0.0
    rows = basis.extracted(ritz, wanted, scout)
    return RitzPairs(
        values=torch.from_numpy(ritz.values[wanted].copy()),
        residuals=torch.from_numpy(ritz.residuals[wanted].copy()),
        vectors=torch.stack(rows[: len(wanted)]),
        scout=None if scout is None else rows[-1],
        products=products,
        converged=goal.reached or goal.passed(ritz),
        asymmetry=asymmetry,
        finite=True,
        errors=torch.from_numpy(np.maximum(goal.errors(ritz), basis.rounding)),
        second=goal.second(ritz),
    )


def _check(k: int, ends: int, b: int, space: Space, max_products: int, max_basis: int | None, which: str) -> None:
    if which not in ENDS:
        raise ValueError(f"which is {which!r}; expected one of {', '.join(map(repr, ENDS))}")
    if not k >= 1 or ends * k > space.dimension or max(ends * k, k) > max_products or b > space.dimension:
        raise ValueError(
            f"{ends * k} eigenvalues of a {space.dimension} x {space.dimension} matrix with {max_products} products "
            f"from {b} start vectors: k must not exceed either"
        )
    least = ends * k + b + SMALLEST_BASIS
    if max_basis is not None and max_basis < min(least, space.dimension + 1):
        raise ValueError(
            f"max_basis is {max_basis}; expected at least {least}: {ends * k} wanted vectors, {b} that wait to be "
            f"multiplied and {SMALLEST_BASIS} to make progress with"
        )


def _not_finite(count: int, n: int, start: Tensor, products: int) -> RitzPairs:
    nothing = torch.full((count,), math.nan, dtype=torch.float64)
    return RitzPairs(
        nothing,
        nothing.clone(),
        start.new_empty((0, n)),
        None,
        products,
        converged=False,
        asymmetry=math.nan,
        finite=False,
        errors=nothing.clone(),
    )
