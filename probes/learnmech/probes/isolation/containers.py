"""Containers whose content a training step may change, and how each is copied and put back.

A container is copied and refilled past any method of a subclass, so that nothing of the user's runs.
"""

import array
import collections
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from learnmech.probes.isolation.slots import read_slots, write_slots


@dataclass(frozen=True, slots=True)
class Kind:
    """How to copy and refill one type of container, without going through a subclass's own methods."""

    type: type
    copy: Callable[[Any], Any]
    refill: Callable[[Any, Any], None]
    same: Callable[[Any, Any], bool]


def same_items(now: Any, then: Any) -> bool:
    """Tell whether two sequences hold the very same objects in the same order."""
    return len(now) == len(then) and all(map(operator.is_, now, then))


def _dict_content(container: dict[Any, Any]) -> dict[Any, Any]:
    if not dict.__len__(container):
        return {}
    # the order of an OrderedDict is kept apart from what dict keeps, and `move_to_end` changes only the former
    if isinstance(container, collections.OrderedDict):
        return dict(collections.OrderedDict.items(container))
    return dict(dict.items(container))


def _same_dict(now: dict[Any, Any], then: dict[Any, Any]) -> bool:
    if not then:  # as most of the dicts of a module are
        return dict.__len__(now) == 0
    content = _dict_content(now)
    return same_items(content, then) and same_items(content.values(), then.values())


def _refill_dict(container: dict[Any, Any], content: dict[Any, Any]) -> None:
    if isinstance(container, collections.OrderedDict):
        collections.OrderedDict.clear(container)
        collections.OrderedDict.update(container, content)
    else:
        dict.clear(container)
        dict.update(container, content)


def _refill_list(container: list[Any], content: list[Any]) -> None:
    list.__setitem__(container, slice(None), content)


def _refill_set(container: set[Any], content: set[Any]) -> None:
    set.clear(container)
    set.update(container, content)


def _refill_deque(container: collections.deque[Any], content: list[Any]) -> None:
    collections.deque.clear(container)
    collections.deque.extend(container, content)


KINDS = (
    Kind(dict, _dict_content, _refill_dict, _same_dict),
    Kind(list, lambda c: list.__getitem__(c, slice(None)), _refill_list, same_items),
    Kind(set, lambda c: set(set.__iter__(c)), _refill_set, lambda a, b: set.__eq__(a, b) is True),
    Kind(collections.deque, lambda c: list(collections.deque.__iter__(c)), _refill_deque, same_items),
    Kind(bytearray, bytes, lambda c, content: bytearray.__setitem__(c, slice(None), content), lambda a, b: a == b),
    Kind(array.array, lambda c: c[:], lambda c, content: c.__setitem__(slice(None), content), lambda a, b: a == b),
)

SLOTS = Kind(dict, read_slots, write_slots, lambda now, then: _same_dict(read_slots(now), then))


EXACT = {kind.type: kind for kind in KINDS} | {collections.OrderedDict: KINDS[0]}
"""What nearly every container of a module is: found without asking first whether it is a tensor, which is slow."""


def kind_of(value: Any) -> Kind | None:
    """Return how to copy and refill `value`, None if it is no container."""
    return next((kind for kind in KINDS if isinstance(value, kind.type)), None)
