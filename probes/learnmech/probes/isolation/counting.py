"""How many examples a batch holds, so that the mean over batches is the mean over examples."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor


def examples(batch: object) -> int:
    """Return the number of examples of a batch: the first dimension of the first tensor that has one.

    Tensors are looked for in order, through mappings, sequences and dataclasses, nested to any depth.

    >>> import torch
    >>> examples({"id": "a", "x": torch.zeros(8, 3), "y": torch.zeros(8)})
    8

    Raises:
        ValueError: There is no such tensor.
    """
    found = count(batch)
    if found is None:
        raise ValueError(
            f"cannot see how many examples a batch of type {type(batch).__name__} holds: it has no tensor with a first "
            "dimension; pass weights=[number of examples of each batch]"
        )
    return found


def count(batch: object) -> int | None:
    """Return the first dimension of the first tensor that has one, None where there is none, or none can be found."""
    try:
        return _first(batch)
    except Exception:  # noqa: BLE001 (a batch of the user's may raise anything, in the midst of the training)
        return None


def _first(batch: object) -> int | None:
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.dim() > 0 else None
    parts: Iterable[object] = ()
    if type(batch) is tuple or type(batch) is list:  # most are: at every step, a look at abstract classes is dear
        parts = batch
    elif isinstance(batch, Mapping):
        parts = batch.values()
    elif isinstance(batch, Sequence) and not isinstance(batch, str | bytes):
        parts = batch
    elif dataclasses.is_dataclass(batch):
        parts = (getattr(batch, field.name) for field in dataclasses.fields(batch))
    for part in parts:
        found = _first(part)
        if found is not None:
            return found
    return None
