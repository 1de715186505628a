"""Where Lanczos starts: earlier Ritz vectors, with enough of everything else to notice what overtakes them.

Two ways, for two goals. To a relative *residual*, the iteration goes on long enough to see what is mixed into the start
vectors (`start_vectors`). To an *accuracy of the eigenvalue* it often stops after three products, in which a mixture
is not taken apart: there the runner-up gets a start vector, and a product, of its own (`challenged`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learnmech.probes.curvature.result import TopEigenvalues
from learnmech.probes.curvature.solvers.stopping import Trust
from learnmech.probes.curvature.space import Space

NOISE = 0.1
"""Length of a fresh random vector added to each unit start vector.

Without it a vector that stays an exact eigenvector is confirmed by one product forever, whatever overtakes it. Measured
at tol = 1e-3 with 100 000 parameters, 20 outliers over a small bulk, 40 measurements during which the second eigenvalue
rises from half to one and a half times the first: noise 0.03 alone missed the crossing for 12 measurements (error up to
24 %), noise 0.1 alone for 6, noise 0.1 with SCOUT for none. In training, 10 steps apart, it costs next to nothing,
because the weights' own motion is larger: 7.8 -> 8.5 products (tanh network at the edge of stability), 6.2 -> 6.2
(convolutional network with batch norm, SGD), 4.1 -> 4.1 (transformer, AdamW)."""

SCOUT = 0.1
"""Length of the runner-up (the next Ritz vector of the measurement before) added to the last start vector: what
overtakes has usually been second for a while. Together with NOISE: 9.3, 6.1 and 4.1 products in the trainings above."""

REFRESH = 10
"""Measurements after which one starts cold. Against adversarial spectra (an eigenvalue jumps ahead from nowhere in a
wide bulk) neither of the two is certain to see it; this bounds how long. Costs a tenth of cold minus warm."""


WHISPER = 0.03
"""Length of the random vector added to start vectors that have a challenger beside them: 1e-3 of the first Rayleigh
quotient, small beside the 1 % that is asked for."""

TURNED = 0.44
"""Sine of the angle between the new eigenvector and the plane of those tracked beyond which a start did not hold: a
cosine of 0.9. At the edge of stability the top eigenvalues change places between two measurements; elsewhere vectors
turn slowly."""

AWAY, TRACKED = 0.3, 0.6
"""Where the vectors tracked do not hold, the start is the gradient with its part along each of them raised to TRACKED
at least (of its length) and the rest lowered to AWAY. Gradients lie in the top subspace: where the last vector does not
hold, fewer products lead from the gradient to the top than from that vector or from a random one. But a direction that
the gradient happens to lack is found late, after its neighbour below was taken for the top."""

STRAY = 0.1
"""Length of the random vector added to a gradient that is a cold start: what the gradient lacks by symmetry."""


@dataclass(frozen=True, slots=True)
class Start:
    """Where an iteration starts.

    Attributes:
        vectors: Start vectors, not orthonormal. [b, P]
        age: The age to give the next result.
        trust: What is known from before.
    """

    vectors: Tensor
    age: int
    trust: Trust


def challenged(
    start: TopEigenvalues | None,
    k: int,
    space: Space,
    draw: Callable[[], Tensor],
    gradient: Callable[[], Tensor] | None = None,
) -> Start:
    """Return k earlier Ritz vectors and the runner-up as a challenger; every so often, start cold.

    Without the challenger a measurement of few products confirms an eigenvector long after another one has overtaken
    it, at an estimated error that shows nothing of it. The challenger costs a product, if the start holds. What comes
    from nowhere, with no part in either, is left to the next cold start.

    If the vectors did not hold the last time, the gradient and all that is tracked are mixed into one start vector: a
    product of its own for each would be wasted. A cold start is the gradient, too.

    Args:
        start: An earlier result, or None for a cold start.
        k: How many eigenvalues are wanted.
        space: The space they live in.
        draw: Draws a random vector. [P]
        gradient: Takes the gradient of the loss, called at most once; None: random vectors instead. [P]

    Raises:
        ValueError: The earlier vectors have another length.
    """  # noqa: DOC502 (raised by _fits)
    if start is None or len(start.vectors) != k or start.age >= REFRESH:  # of another k: what overtakes is not known
        rows = [space.unit(draw()) for _ in range(k)]
        slope = _unit_gradient(space, gradient)
        if slope is not None:
            rows[0] = slope.add_(rows[0], alpha=STRAY)
        return Start(torch.stack(rows), 0, Trust())
    _fits(start.vectors, space)
    like = space.zeros()
    rows = [space.unit(row.to(like)).add_(space.unit(draw()), alpha=WHISPER) for row in start.vectors]
    challenger = start.scout if start.scout is None else space.unit(start.scout.to(like))
    slope = _unit_gradient(space, gradient) if start.turned > TURNED else None
    if slope is not None:
        tracked = rows if challenger is None else [*rows, challenger]
        rows[-1] = _mixed(tracked[k - 1 :], slope, space)
        return Start(torch.stack(rows), start.age + 1, Trust())
    if challenger is not None and space.dimension > k:
        rows.append(challenger.add_(space.unit(draw()), alpha=WHISPER))
    return Start(torch.stack(rows), start.age + 1, Trust(warm=True))


def both_ends(start: TopEigenvalues, k: int, space: Space, draw: Callable[[], Tensor]) -> Start:
    """Return k earlier Ritz vectors of each end and what comes next at both of them as a challenger."""
    vectors, age = start_vectors(start, 2 * k, space, draw)
    if age == 0 or start.scout is None or space.dimension <= 2 * k:
        return Start(vectors, age, Trust())
    challenger = space.unit(start.scout.to(vectors)).add_(space.unit(draw()), alpha=WHISPER)
    return Start(torch.cat([vectors, challenger[None]]), age, Trust())


def _unit_gradient(space: Space, gradient: Callable[[], Tensor] | None) -> Tensor | None:
    """Return the gradient over its length; None if there is none, at a stationary point, or it is not finite."""
    if gradient is None:
        return None
    found = space.unit(gradient())
    return found if bool(space.norm(found).isfinite()) else None


def _mixed(tracked: Sequence[Tensor], gradient: Tensor, space: Space) -> Tensor:
    """Return sum_i s_i max(|g'v_i|, TRACKED) v_i + AWAY (g - sum_i g'v_i v_i), with the sign s_i of g'v_i [P]."""
    overlaps = space.dots(tracked, gradient).tolist()
    mixed = AWAY * gradient
    for vector, overlap in zip(tracked, overlaps, strict=True):
        raised = math.copysign(max(abs(overlap), TRACKED), overlap)
        mixed.add_(vector, alpha=raised - AWAY * overlap)
    return mixed


def start_vectors(
    start: Tensor | TopEigenvalues | None, k: int, space: Space, draw: Callable[[], Tensor]
) -> tuple[Tensor, int]:
    """Return k start vectors and the age to give the next result.

    Args:
        start: An earlier result, or earlier vectors ([P] or [j, P], the first k count), or None for a cold start.
            Vectors that are zero or not finite are replaced by random ones.
        k: How many vectors are needed.
        space: The space they live in, with P numbers per vector in this process.
        draw: Draws a random vector. [P]

    Returns:
        The vectors, not orthonormal. [k, P]

    Raises:
        ValueError: The earlier vectors have another length.
    """  # noqa: DOC502 (raised by _fits)
    age, rows = 0, torch.empty((0, space.size), dtype=space.dtype)
    scout: Tensor | None = None
    if isinstance(start, TopEigenvalues):
        if start.age < REFRESH and len(start.vectors):
            age, rows, scout = start.age + 1, start.vectors, start.scout
    elif start is not None:
        rows = start.detach().reshape(-1, start.shape[-1])
    _fits(rows, space)
    result = [space.unit(draw()) for _ in range(k)]
    for index, row in enumerate(rows[:k]):
        vector = space.unit(row.to(result[index]))
        if bool(space.norm(vector).isfinite()):  # a zero vector has become NaN here
            result[index] = vector.add_(result[index], alpha=NOISE)
    if scout is not None and k <= len(rows):
        result[k - 1] = result[k - 1].add_(space.unit(scout.to(result[k - 1])), alpha=SCOUT)
    return torch.stack(result), age


def _fits(rows: Tensor, space: Space) -> None:
    if rows.shape[-1] != space.size:
        raise ValueError(
            f"start vectors have {rows.shape[-1]} components; the parameters have {space.size}: another model?"
        )
