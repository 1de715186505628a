"""Disjoint pieces of a batch: what the noise of a gradient is estimated from."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from learnmech.probes.isolation import Refusal
from learnmech.probes.isolation.batch import rebuild, tensors
from learnmech.probes.isolation.counting import count

REMEDY = "Pass GradientNoiseScale(split=...), a function split(batch, pieces) that returns a list of smaller batches."


def sizes(total: int, pieces: int) -> list[int]:
    """Return the sizes of `pieces` pieces of `total` examples, as equal as can be.

    >>> sizes(10, 4)
    [3, 3, 2, 2]
    """
    return [total // pieces + (index < total % pieces) for index in range(pieces)]


def split(batch: Any, pieces: int) -> list[Any]:
    """Cut a batch along the first dimension of all its tensors.

    Tensors without dimensions and anything that is not one entry per example go into every piece.

    >>> import torch
    >>> [piece["x"].shape[0] for piece in split({"x": torch.zeros(7, 2), "name": "a"}, 2)]
    [4, 3]

    Raises:
        Refusal: There are fewer examples than pieces, or tensors disagree on how many there are.
    """
    total = count(batch)
    if total is None:
        raise Refusal("No tensor of the batch tells how many examples it holds.", REMEDY)
    lengths = {tensor.shape[0] for tensor in tensors(batch) if tensor.dim() > 0}
    if lengths != {total}:
        raise Refusal(f"Tensors of the batch have first dimensions {sorted(lengths)}, so it cannot be cut.", REMEDY)
    if total < pieces:
        raise Refusal(f"A batch of {total} examples cannot be cut into {pieces} pieces.", REMEDY)
    found, start = [], 0
    for size in sizes(total, pieces):
        found.append(_piece(batch, start, start + size, total))
        start += size
    return found


def _piece(batch: Any, start: int, stop: int, total: int) -> Any:
    def cut(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[start:stop] if value.dim() > 0 else value
        # an array or a list: one entry per example, or the same for all of them
        per_example = isinstance(value, Sequence) or value.ndim > 0
        return value[start:stop] if per_example and len(value) == total else value

    return rebuild(batch, cut)
