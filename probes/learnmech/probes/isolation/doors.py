"""Doors: functions of the process that are replaced while a measurement runs, and put back after the last one.

A replacement stands in for all threads, so it has to ask whose call it is.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Place = tuple[Any, str, Callable[[Any], Any]]
"""Owner, name, and what makes the replacement of what is found there."""


class _Missing:
    """Stands for an attribute that the owner inherits."""


class Doors:
    """Replaces functions while anybody asks for it, in any thread.

    Args:
        places: Yields what is to be replaced.
    """

    def __init__(self, places: Callable[[], Iterator[Place]]) -> None:
        self._places = places
        self._lock = threading.Lock()
        self._users: set[object] = set()
        self._replaced: list[tuple[Any, str, Any, Any]] = []
        self._made: dict[tuple[int, str], tuple[Any, Any]] = {}  # replacements from before: making them takes longer

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Replace them; with the last user they are as they were."""
        user = object()
        try:
            with self._lock:
                self._users.add(user)
                if len(self._users) == 1:
                    self._replace()
            yield
        finally:
            with self._lock:
                self._users.discard(user)
                if not self._users:
                    self._put_back()

    def _replace(self) -> None:
        for owner, name, make in self._places():
            found = getattr(owner, name)
            original, guard = self._made.get((id(owner), name), (None, None))
            if original is not found:
                guard = make(found)
                self._made[id(owner), name] = (found, guard)
            self._replaced.append((owner, name, owner.__dict__.get(name, _Missing), guard))
            setattr(owner, name, guard)

    def _put_back(self) -> None:
        while self._replaced:
            owner, name, original, guard = self._replaced.pop()
            if owner.__dict__.get(name) is not guard:  # somebody else has put something there since
                continue
            if original is _Missing:
                delattr(owner, name)
            else:
                setattr(owner, name, original)
