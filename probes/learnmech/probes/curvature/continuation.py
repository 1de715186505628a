"""From one measurement to the next: where it starts, what it hands on, and how far the vector has turned."""

import math
from collections.abc import Callable

from torch import Tensor

from learnmech.probes.curvature.operators import Operator
from learnmech.probes.curvature.result import TopEigenvalues
from learnmech.probes.curvature.solvers.lanczos import RitzPairs
from learnmech.probes.curvature.solvers.start import Start, both_ends, challenged, start_vectors
from learnmech.probes.curvature.solvers.stopping import Trust
from learnmech.probes.curvature.space import Space

FADES = 0.95
"""What an earlier measurement saw counts for this part of what this one saw."""


def beginning(
    start: Tensor | TopEigenvalues | None,
    k: int,
    which: str,
    operator: Operator,
    draw: Callable[[], Tensor],
    accuracy: float | None,
) -> Start:
    """Return where to start: with a challenger where an eigenvalue is wanted, mixed where a vector is.

    Args:
        start: An earlier result, or earlier vectors, or None for a cold start.
        k: How many eigenvalues of each end.
        which: `largest`, `smallest` or `both`.
        operator: The Hessian.
        draw: Draws a random vector. [P]
        accuracy: Relative error of the eigenvalues to reach; None where a residual is to be reached.

    Raises:
        ValueError: The earlier vectors have another length.
    """  # noqa: DOC502 (raised by `learnmech.probes.curvature.solvers.start`)
    space = operator.space
    if accuracy is None or isinstance(start, Tensor) or (start is None and which == "both"):
        return Start(*start_vectors(start, 2 * k if which == "both" else k, space, draw), Trust())
    if start is not None and which == "both":
        return both_ends(start, k, space, draw)
    return challenged(start, k, space, draw, operator.gradient if which == "largest" else None)


def runner_up(pairs: RitzPairs, start: Tensor | TopEigenvalues | None, begin: Start) -> tuple[Tensor | None, float]:
    """Return the runner-up and its part of the last wanted eigenvalue: of two, the one that stood for more.

    A cold start stops when the wanted vectors are there, often before their neighbours are.
    """
    if begin.age == 0 and isinstance(start, TopEigenvalues) and start.scout is not None:
        kept = FADES * start.second
        if kept > pairs.second and start.vectors.shape == pairs.vectors.shape:
            return start.scout, kept
    return pairs.scout, pairs.second


def turned(vectors: Tensor, start: Tensor | TopEigenvalues | None, space: Space) -> float:
    """Return the sine of the angle between the last of the new vectors and the plane of its predecessor and the scout.

    What has turned is expected to turn again, and what has not been seen, early in training, to turn: then it is 1.
    """
    if not isinstance(start, TopEigenvalues) or start.vectors.shape != vectors.shape:
        return 1.0
    like = vectors[-1]
    tracked = [start.vectors[-1].to(like)]
    if start.scout is not None:
        scout = start.scout.to(like)
        tracked.append(space.unit(scout - space.dot(tracked[0], scout) * tracked[0]))
    inside = float(space.dots(tracked, like).square().sum())
    return math.sqrt(max(0.0, 1.0 - inside)) if math.isfinite(inside) else 1.0
