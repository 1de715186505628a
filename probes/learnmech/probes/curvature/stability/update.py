"""An update that has been applied: the loss before it and after it as objectives, and the step between them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from learnmech.probes.curvature.objective import Objective
from learnmech.probes.curvature.processes import objective_in
from learnmech.probes.isolation import PureLoss
from learnmech.probes.isolation.sharded import ShardedLoss


@dataclass(frozen=True, eq=False, slots=True)
class AppliedUpdate:
    """One loss at two sets of weights, under the same batches, random numbers and buffers.

    Attributes:
        before: The loss as an objective at w_t.
        after: The same at w_(t+1).
        step: s = w_(t+1) - w_t, flat; of sharded weights this process's part. Exact where a weight changes by less
            than a factor of two (Sterbenz). [size]
    """

    before: Objective
    after: Objective
    step: Tensor


def applied_update(loss: PureLoss | ShardedLoss, held: Mapping[str, Tensor], batches: Sequence[Any]) -> AppliedUpdate:
    """Return the update from held weights to those a loss is at, over the batches of all processes that measure.

    Args:
        loss: The isolated loss, at w_(t+1).
        held: Copies of the weights w_t (of sharded ones this process's part) by name; one that is missing has not
            changed.
        batches: This process's batch of the update, in one part or several.

    Raises:
        ValueError: There are no batches, or their sizes cannot be told.
        PeerFailed: It failed in some process.
    """  # noqa: DOC502 (raised by objective_in)
    after, before = objective_in(loss, batches), objective_in(loss, batches, held=held)
    return AppliedUpdate(before, after, after.join(after.parameters).sub_(before.join(before.parameters)))
