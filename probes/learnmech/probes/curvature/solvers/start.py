"""Where Lanczos starts: earlier Ritz vectors, with enough of everything else to notice what overtakes them."""

from collections.abc import Callable

import torch
from torch import Tensor

from learnmech.probes.curvature.result import TopEigenvalues
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
    """
    age, rows = 0, torch.empty((0, space.size), dtype=space.dtype)
    scout: Tensor | None = None
    if isinstance(start, TopEigenvalues):
        if start.age < REFRESH and len(start.vectors):
            age, rows, scout = start.age + 1, start.vectors, start.scout
    elif start is not None:
        rows = start.detach().reshape(-1, start.shape[-1])
    if rows.shape[-1] != space.size or (scout is not None and len(scout) != space.size):
        raise ValueError(
            f"start vectors have {rows.shape[-1]} components; the parameters have {space.size}: another model?"
        )
    result = [space.unit(draw()) for _ in range(k)]
    for index, row in enumerate(rows[:k]):
        vector = space.unit(row.to(result[index]))
        if bool(space.norm(vector).isfinite()):  # a zero vector has become NaN here
            result[index] = vector.add_(result[index], alpha=NOISE)
    if scout is not None and k <= len(rows):
        result[k - 1] = result[k - 1].add_(space.unit(scout.to(result[k - 1])), alpha=SCOUT)
    return torch.stack(result), age
