"""Attributes in `__slots__`: state that is in no `__dict__`, read and written past the object's own methods."""

import types
from typing import Any

Slots = dict[types.MemberDescriptorType, Any]
"""Values by descriptor; a slot that holds nothing is left out."""


def has_slots(value: object) -> bool:
    """Tell whether a class of `value` written in Python declares slots."""
    return any(_descriptors(cls) for cls in type(value).__mro__)


def _descriptors(cls: type) -> list[types.MemberDescriptorType]:
    # classes written in C have such descriptors without declaring `__slots__`, and theirs cannot be written
    if "__slots__" not in cls.__dict__:
        return []
    return [found for found in cls.__dict__.values() if isinstance(found, types.MemberDescriptorType)]


def read_slots(value: object) -> Slots:
    """Return what the slots of `value` hold.

    >>> class Point:
    ...     __slots__ = ("x", "y")
    >>> point = Point()
    >>> point.x = 3
    >>> list(read_slots(point).values())
    [3]
    """
    found: Slots = {}
    for cls in type(value).__mro__:
        for descriptor in _descriptors(cls):
            try:
                found[descriptor] = descriptor.__get__(value, type(value))
            except AttributeError:
                continue
    return found


def write_slots(value: object, content: Slots) -> None:
    """Make the slots of `value` hold `content` and nothing else."""
    for descriptor in read_slots(value):
        if descriptor not in content:
            descriptor.__delete__(value)
    for descriptor, item in content.items():
        descriptor.__set__(value, item)
