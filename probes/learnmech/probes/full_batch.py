"""Does every step see the same whole training set? Laws of deterministic descent depend on the answer."""

import weakref
from typing import TYPE_CHECKING, Any

from learnmech.probes.isolation.batch import tensors

if TYPE_CHECKING:
    from torch import Tensor

PAUSE = 50
"""Steps after which batches that differed are compared again."""


class FullBatch:
    """Decides `full_batch` from what was declared, from sizes, or from the batches themselves.

    In this order: the user's word; a batch that holds the whole data set in one micro-batch; the same tensor objects,
    unwritten, at two steps in a row. Otherwise 0. The last can be told from the second step on.

    Args:
        declared: What the user said, None for nothing.
        dataset_size: Number of training examples, None where unknown.
    """

    def __init__(self, declared: bool | None = None, dataset_size: int | None = None) -> None:
        self._declared = declared
        self._dataset_size = dataset_size
        self._last: list[tuple[weakref.ref[Tensor], int]] | None = None
        self._verdict: float | None = None
        self._pause = 0

    def observe(self, batch: Any, examples: int | None, accumulation: int = 1) -> float | None:
        """Look at the batch of one step.

        Args:
            batch: The batch, or the last micro-batch.
            examples: Examples in it, None where unknown.
            accumulation: Micro-batches of the step.

        Returns:
            1.0, 0.0, or None as long as it cannot be told.
        """
        if self._declared is not None:
            return float(self._declared)
        if accumulation > 1:
            return 0.0
        if self._dataset_size is not None and examples is not None:
            return float(examples >= self._dataset_size)
        if self._pause:
            self._pause -= 1
        else:
            self._compare(batch)
        return self._verdict

    def _compare(self, batch: Any) -> None:
        now = list(tensors(batch))
        if self._last is not None:
            same = len(self._last) == len(now) > 0
            for (reference, version), tensor in zip(self._last, now, strict=False):
                same = same and reference() is tensor and version == _version(tensor)
            self._verdict = float(same)
            if not same:
                self._last, self._pause = None, PAUSE
            return
        # weak references: a freed tensor's identity is soon another's, and the batch must not be kept alive
        self._last = [(weakref.ref(tensor), _version(tensor)) for tensor in now]


def _version(tensor: "Tensor") -> int:
    return 0 if tensor.is_inference() else tensor._version
