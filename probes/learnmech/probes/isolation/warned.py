"""Warnings that are not shown, for a while.

`warnings.filterwarnings` and `catch_warnings` make Python forget which warnings were shown before, so that each of the
user's comes once more. A filter put into the list by hand makes it forget nothing.
"""

import contextlib
import warnings
from typing import Any, Protocol, cast


class Matches(Protocol):
    """What Python asks of the pattern of a filter."""

    def match(self, text: str, /) -> object:
        """Tell whether a warning is meant."""
        ...


class Ignored:
    """Ignores warnings from now on, in all threads.

    Args:
        which: Matches the text of those meant.
    """

    def __init__(self, which: Matches) -> None:
        self._filter = ("ignore", which, Warning, None, 0)
        self._filters = cast("list[Any]", warnings.filters)  # the very list: others may put a copy in its place
        self._filters.insert(0, self._filter)

    def remove(self) -> None:
        """Ignore them no more."""
        with contextlib.suppress(ValueError):  # the user's code has emptied the list
            self._filters.remove(self._filter)
