"""Batches of any shape: copying them, so that a replay may pop and overwrite, and finding the tensors in them."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

_PLAIN = (str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device)


def rebuild(batch: Any, leaf: Callable[[Any], Any], memo: dict[int, Any] | None = None) -> Any:
    """Rebuild every container of `batch` and replace tensors, arrays and lists of plain values by `leaf(value)`.

    Tuples, named tuples, lists, dicts and other mappings, sets, dataclasses and objects with a `__dict__` are rebuilt
    with their own type; one object that occurs twice is rebuilt once. Anything else is passed through.

    Args:
        batch: The batch.
        leaf: What to do with a tensor, an array, or a list or tuple that holds nothing but strings and numbers.
        memo: Objects rebuilt already, by identity.
    """
    if isinstance(batch, _PLAIN):
        return batch
    memo = {} if memo is None else memo
    if id(batch) not in memo:
        memo[id(batch)] = _rebuild(batch, leaf, memo)
    return memo[id(batch)]


def _rebuild(batch: Any, leaf: Callable[[Any], Any], memo: dict[int, Any]) -> Any:
    if isinstance(batch, Tensor | np.ndarray) or _is_column(batch):
        return leaf(batch)
    if isinstance(batch, tuple):
        fields = [rebuild(item, leaf, memo) for item in batch]
        return type(batch)(*fields) if hasattr(batch, "_fields") else _retyped(batch, tuple(fields))
    if isinstance(batch, list):
        return _retyped(batch, [rebuild(item, leaf, memo) for item in batch])
    if isinstance(batch, set | frozenset):
        return type(batch)(rebuild(item, leaf, memo) for item in batch)
    if isinstance(batch, MutableMapping):
        return _mapping(batch, leaf, memo)
    if isinstance(batch, Mapping):
        return {key: rebuild(value, leaf, memo) for key, value in batch.items()}
    if dataclasses.is_dataclass(batch) or hasattr(batch, "__dict__"):
        return _object(batch, leaf, memo)
    return batch


def _is_column(batch: Any) -> bool:
    """Tell whether `batch` is a list of plain values: names or indices of the examples."""
    return type(batch) in (list, tuple) and len(batch) > 0 and all(isinstance(item, _PLAIN) for item in batch)


def _retyped(original: Any, items: Any) -> Any:
    return items if type(original) in (list, tuple) else type(original)(items)


def _mapping(batch: MutableMapping[Any, Any], leaf: Callable[[Any], Any], memo: dict[int, Any]) -> Any:
    twin = copy.copy(batch)  # keeps a default factory, an order, a subclass
    if "data" in getattr(twin, "__dict__", {}):  # UserDict and its children share `data` after a shallow copy
        twin.__dict__["data"] = dict(twin.__dict__["data"])
    for key, value in batch.items():
        twin[key] = rebuild(value, leaf, memo)
    return twin


def _object(batch: Any, leaf: Callable[[Any], Any], memo: dict[int, Any]) -> Any:
    if isinstance(batch, type) or callable(batch):
        return batch
    twin = copy.copy(batch)
    memo[id(batch)] = twin
    for name, value in _attributes(batch):
        object.__setattr__(twin, name, rebuild(value, leaf, memo))
    return twin


def _attributes(value: Any) -> list[tuple[str, Any]]:
    if dataclasses.is_dataclass(value):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return list(vars(value).items())


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    return value if isinstance(value, tuple) else value.copy()


def clone(batch: Any) -> Any:
    """Copy a batch so deeply that nothing done to the copy reaches the original.

    >>> original = {"x": torch.zeros(2), "names": ["a", "b"]}
    >>> twin = clone(original)
    >>> _ = twin.pop("names"), twin["x"].add_(1)
    >>> original
    {'x': tensor([0., 0.]), 'names': ['a', 'b']}
    """
    return rebuild(batch, _copy)


def tensors(batch: Any) -> Iterator[Tensor]:
    """Yield the tensors of a batch in a fixed order; one that occurs twice comes twice."""
    if isinstance(batch, Tensor):
        yield batch
    elif type(batch) is tuple or type(batch) is list:  # before the dearer questions: this is asked at every step
        for value in batch:
            yield from tensors(value)
    elif isinstance(batch, (*_PLAIN, type)) or callable(batch):
        return
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from tensors(value)
    elif isinstance(batch, tuple | list | set | frozenset):
        for value in batch:
            yield from tensors(value)
    elif dataclasses.is_dataclass(batch) or hasattr(batch, "__dict__"):
        for _, value in _attributes(batch):
            yield from tensors(value)
