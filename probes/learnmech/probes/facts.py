"""What is known of the updates besides measurements: batch size, accumulation, data set, full batch."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from learnmech.probes.changes import Changes
from learnmech.probes.full_batch import FullBatch
from learnmech.wire import Measurement


@dataclass(slots=True)
class Update:
    """What the trainer knows of one update.

    Attributes:
        loss: Its loss, with its graph if the trainer left it there.
        batch: Its batch, or the last micro-batch of it.
        examples: Independent examples of the whole update, None where they cannot be counted.
        micro_examples: Examples in `batch`.
        accumulation: Micro-batches of the update.
    """

    loss: Tensor | float | None = None
    batch: Any = None
    examples: int | None = None
    micro_examples: int | None = None
    accumulation: int = 1


def detached(loss: Tensor | float | None) -> Tensor | float | None:
    """Return a loss without its graph."""
    return loss.detach() if isinstance(loss, Tensor) else loss


class Facts:
    """Records facts of updates when they change.

    Args:
        declared_full_batch: The user's word on `full_batch`.
        dataset_size: Number of training examples, where known.
    """

    def __init__(self, declared_full_batch: bool | None, dataset_size: int | None) -> None:
        self.dataset_size = dataset_size
        self.full_batch: float | None = None
        self.examples: int | None = None
        """Examples of the last batch or micro-batch."""
        self._watch = FullBatch(declared_full_batch, dataset_size)
        self._changes = Changes()
        self._last: tuple[object, ...] = ()

    def changed(self, update: Update) -> list[Measurement]:
        """Return the measurements to record: those of facts that changed with this update."""
        self.full_batch = self._watch.observe(update.batch, update.micro_examples, update.accumulation)
        self.examples = update.micro_examples
        now = (update.examples, update.accumulation, self.full_batch)
        if now == self._last:
            return []
        self._last = now
        facts = {
            "batch_size": update.examples,
            "accumulation": update.accumulation,
            "dataset_size": self.dataset_size,
            "full_batch": self.full_batch,
        }
        known = {name: float(value) for name, value in facts.items() if value is not None}
        return [measurement for name, value in known.items() for measurement in self._changes.note(name, value)]
