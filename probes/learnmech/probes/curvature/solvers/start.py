"""Where Lanczos starts: earlier Ritz vectors, with enough of everything else to notice what overtakes them.

Two ways, for two goals. To a relative *residual*, the iteration goes on long enough to see what is mixed into the start
vectors (`start_vectors`). To an *accuracy of the eigenvalue* it stops after two or three products, in which a mixture
is not taken apart: there the runner-up gets a start vector, and a product, of its own (`challenged`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from learnmech.probes.curvature.result import TopEigenvalues
from learnmech.probes.curvature.solvers.stopping import HOLDS, Trust
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

MIX = 0.3
"""Length of runner-up and of a random vector added to a start vector that did not hold the last time: then a product of
its own for the runner-up is wasted, and a vector that has turned away loses nothing by being mixed."""


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


def challenged(start: TopEigenvalues | None, k: int, space: Space, draw: Callable[[], Tensor]) -> Start:
    """Return k earlier Ritz vectors and the runner-up as a challenger; every so often, start cold.

    Without the challenger a measurement of two or three products confirms an eigenvector long after another one has
    overtaken it: on a tanh network under SGD (20 steps between measurements) the second eigenvector was taken for the
    first over 80 steps, 25 % off, at an estimated error of 1 %; 35 of 100 measurements were off by more than that. With
    the challenger none was, for one product more. It is multiplied only if the start holds. What comes from nowhere,
    with no part in either, is found by the next cold start.

    Args:
        start: An earlier result, or None for a cold start: then all is random.
        k: How many eigenvalues are wanted.
        space: The space they live in.
        draw: Draws a random vector. [P]

    Raises:
        ValueError: The earlier vectors have another length.
    """  # noqa: DOC502 (raised by _fits)
    if start is None or len(start.vectors) != k or start.age >= REFRESH:  # of another k: what overtakes is not known
        return Start(torch.stack([space.unit(draw()) for _ in range(k)]), 0, Trust())
    _fits(start.vectors, space)
    like = space.zeros()
    rows = [space.unit(row.to(like)).add_(space.unit(draw()), alpha=WHISPER) for row in start.vectors[:k]]
    challenger = start.scout if start.scout is None else space.unit(start.scout.to(like))
    if start.turned > HOLDS:
        rows[-1] = rows[-1].add_(space.unit(draw()), alpha=MIX)
        if challenger is not None:
            rows[-1] = rows[-1].add_(challenger, alpha=MIX)
    elif challenger is not None and space.dimension > k:
        rows.append(challenger.add_(space.unit(draw()), alpha=WHISPER))
    return Start(torch.stack(rows), start.age + 1, Trust(warm=True, ladder=start.ladder))


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
