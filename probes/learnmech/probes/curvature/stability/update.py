"""An update that has been applied: the loss before it and after it as objectives, and the step between them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from learnmech.probes.curvature.batches import objective_of
from learnmech.probes.curvature.objective import Objective
from learnmech.probes.isolation import PureLoss


@dataclass(frozen=True, eq=False, slots=True)
class AppliedUpdate:
    """One loss at two sets of weights, under the same batches, random numbers and buffers.

    Attributes:
        before: The loss as an objective at w_t.
        after: The same at w_(t+1).
        step: s = w_(t+1) - w_t, flat. Exact where a weight changes by less than a factor of two (Sterbenz). [size]
    """

    before: Objective
    after: Objective
    step: Tensor


def applied_update(loss: PureLoss, held: Mapping[str, Tensor], batches: Sequence[Any]) -> AppliedUpdate:
    """Return the update from held weights to those a loss is at; usable inside `isolated` only.

    Args:
        loss: The isolated loss, at w_(t+1).
        held: Copies of the weights w_t by name; one that is missing has not changed.
        batches: The batch of the update, in one part or several.

    Raises:
        ValueError: There are no batches, or their sizes cannot be told.
    """  # noqa: DOC502 (raised by objective_of)
    after = objective_of(loss, batches)
    leaves = [held.get(name, leaf).detach().requires_grad_() for name, leaf in loss.leaves.items()]
    before = objective_of(loss, batches, parameters=leaves)
    return AppliedUpdate(before, after, after.join(after.parameters).sub_(before.join(leaves)))
