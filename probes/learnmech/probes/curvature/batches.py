"""The objective of an isolated loss over batches."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from learnmech.probes.curvature.objective import Objective, Unmeasurable
from learnmech.probes.isolation import PureLoss
from learnmech.probes.isolation.counting import examples


def objective_of(
    loss: PureLoss,
    batches: Sequence[Any],
    *,
    weights: Sequence[float] | None = None,
    parameters: Sequence[Tensor] | None = None,
    draw: int = 0,
) -> Objective:
    """Return the mean of an isolated loss over all examples; usable inside `learnmech.probes.isolation.isolated` only.

    Args:
        loss: The isolated loss.
        batches: Batches for it. The i-th one is evaluated with the (draw + i)-th fixed state of the random streams.
        weights: Number of examples of each batch. None: the first dimension of the first tensor in the batch (see
            `learnmech.probes.isolation.counting.examples`); a single batch needs none.
        parameters: Where to take it, a leaf for each of the loss's; None: at the loss's own.
        draw: State of the random streams for the first batch; see `PureLoss`.

    Raises:
        ValueError: There are no batches, or their sizes cannot be told.
        Unmeasurable: A batch holds no examples.
    """  # noqa: DOC502 (the last raised below)
    if not batches:
        raise ValueError("no batches came; expected a list with one batch or more")
    if weights is None:
        weights = _counted(batches)
    return Objective(
        list(loss.leaves.values()) if parameters is None else parameters,
        [partial(_evaluate, loss, batch, index) for index, batch in enumerate(batches, start=draw)],
        names=list(loss.leaves),
        weights=weights,
        inside=loss.at,
    )


def _counted(batches: Sequence[Any]) -> list[float]:
    """Return the number of examples of each batch; of a single one it need not be known."""
    try:
        counts = [examples(batch) for batch in batches]
    except ValueError:
        if len(batches) > 1:
            raise
        return [1.0]
    if 0 in counts:
        raise Unmeasurable(f"batch {counts.index(0)} of {len(counts)} holds no examples")
    return [float(count) for count in counts]


def _evaluate(loss: PureLoss, batch: object, index: int, _: Sequence[Tensor]) -> Tensor:
    return loss(batch, draw=index)  # the model holds the parameters already: `inside` has put them there
