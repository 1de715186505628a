"""Unbiased estimates of G'HG and tr(H Sigma): in three pieces of one batch, each in turn gives the Hessian.

G is the gradient of the expected loss, H its Hessian, Sigma the covariance of the gradient of one example. Pieces k of
n_k independent examples have mean gradients g_k = G + e_k, with E e_k e_k' = Sigma / n_k, and mean Hessians H_k. With
H_k of a piece that is neither i nor j all three factors are independent, so that expectations go inside:

    E g_i' H_k g_j                 = G'HG
    E (g_i - g_j)' H_k (g_i - g_j) = tr(H Sigma) (1/n_i + 1/n_j)

whatever the sizes. G drops out of the difference before it is multiplied. These are the estimates from products and
from the spread of pieces of `learnmech.probes.estimators.noise`, with v'Hv for |v|^2.

With the Hessian of the n examples that the gradients are from, both are biased, since an example's Hessian h and its
gradient g go together: by 2 G' E[(h - H)(g - G)] / n and E[(g - G)'(h - H)(g - G)] / n. On a tanh network before
training, with 12 examples, that is 45 and 77 % of G'HG and 32 and 38 % of tr(H Sigma), for learnable and for random
labels; after 100 steps of Adam it is 0.7 and -20 times G'HG.

Why three pieces: it is the fewest, and each of the three pairs of gradients then has a Hessian of its own to take two
products with. All of the batch is in all three factors, at the cost of one gradient and two products of the batch; one
turn alone would cost half of that for three times the variance. The Hessian of the batch before, held, would cost a
gradient more; training has moved along that batch; and with the gradients of two halves of the new one, G'HG has a
variance of 4 tr(H Sigma H Sigma) / n^2 where noise prevails, instead of 3.

Where batches are drawn without replacement from N examples, e_i and e_j are correlated, E e_i e_j' = -Sigma / N: that
is given back. That Hessian and gradients are correlated as well, as above with N for n and the other sign, is not.

H is indefinite: either number may be negative, of one measurement and in truth. Nothing is clamped.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from learnmech.probes.curvature.operators import Operator

PIECES = 3
"""Pieces of a batch: two gradients and a Hessian, all independent."""

TURNS = ((0, 1, 2), (1, 2, 0), (2, 0, 1))
"""Which two pieces give gradients, and which one the Hessian."""


@dataclass(frozen=True, slots=True)
class WeightedParts:
    """Unbiased estimates from one batch, of either sign.

    Attributes:
        trace: Estimate of tr(H Sigma), of one example.
        square: Estimate of G'HG.
        error: Relative error of the products, |A v - product| / |A|, by their own account; 0 where they are exact.
    """

    trace: float
    square: float
    error: float = 0.0

    @property
    def finite(self) -> bool:
        """Tell whether both are."""
        return math.isfinite(self.trace) and math.isfinite(self.square)


def weighted_parts(
    operators: Sequence[Operator], sizes: Sequence[float], *, population: float | None = None
) -> WeightedParts:
    """Estimate G'HG and tr(H Sigma) from three pieces of a batch: the mean over which of them gives the Hessian.

    Costs a gradient and two products of each operator. Graphs are let go of one by one.

    Args:
        operators: The Hessian of the mean loss of each piece, all at the same weights. [3]
        sizes: Examples in each piece. [3]
        population: Examples N of the data set, if batches are drawn from it without replacement.

    Returns:
        Both estimates; they may be NaN where products are.

    Raises:
        ValueError: There are not three pieces, or sizes are not positive.
        NonFinite: The loss of a piece is NaN or infinite.
        Unmeasurable: There is no gradient, or no usable second derivative.
    """  # noqa: DOC502 (the last two raised by the operators)
    if len(operators) != PIECES or len(sizes) != PIECES or min(sizes) <= 0:
        raise ValueError(f"{len(operators)} pieces with sizes {list(sizes)}; expected {PIECES}, each with examples")
    gradients = [operator.gradient() for operator in operators]
    traces, squares, errors = [], [], []
    for i, j, k in TURNS:
        trace, square = _pair(operators[k], gradients[i], gradients[j])
        traces.append(trace * sizes[i] * sizes[j] / (sizes[i] + sizes[j]))
        squares.append(square)
        errors.append(operators[k].error)
        operators[k].release()
    trace = math.fsum(traces) / PIECES
    shared = trace / population if population and population >= sum(sizes) else 0.0
    return WeightedParts(trace, math.fsum(squares) / PIECES + shared, max(errors))


def _pair(operator: Operator, first: Tensor, second: Tensor) -> tuple[float, float]:
    """Return (a - b)'H(a - b) and a'Hb."""
    apart = first - second
    spread = operator.space.dot(apart, operator.matvec(apart))
    return float(spread), float(operator.space.dot(first, operator.matvec(second)))
