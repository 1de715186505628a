"""`is_probing()`: what user code asks before a side effect that no isolation can undo (files, prints, `wandb.log`)."""

from collections.abc import Iterator
from contextlib import contextmanager

_depth = 0


def is_probing() -> bool:
    """Tell whether the code is running inside a measurement rather than in the training itself.

    >>> is_probing()
    False
    """
    return _depth > 0


@contextmanager
def probing() -> Iterator[None]:
    """Mark everything inside as a measurement."""
    global _depth  # noqa: PLW0603 (one flag per process is the point)
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
