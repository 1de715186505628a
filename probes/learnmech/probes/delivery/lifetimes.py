"""What must happen to every open outbox when the process forks or ends."""

import atexit
import os
import threading
import time
from typing import Protocol

AT_EXIT = 2.0
"""Seconds that the end of the process may wait for the collector, all outboxes together."""


class Open(Protocol):
    """Something that holds a thread and files."""

    def close(self, timeout: float) -> None:
        """End within so many seconds."""

    def leave(self) -> None:
        """Forget the thread and the files, in a process that only has copies of them."""


class Lifetimes:
    """The open outboxes of this process.

    Attributes:
        starting: Held while one is opened, so that two threads do not open it twice.
    """

    def __init__(self) -> None:
        self.starting = threading.Lock()
        self._open: set[Open] = set()
        # A sink may hold a database connection. Finalising the copy in a child would say goodbye on the parent's
        # socket, or delete the parent's write-ahead log; so the copies live as long as the child.
        self._inherited: list[object] = []

    def add(self, item: Open) -> None:
        """Look after something that was opened."""
        self._open.add(item)

    def discard(self, item: Open) -> None:
        """Stop looking after something that was closed."""
        self._open.discard(item)

    def inherit(self, *copies: object) -> None:
        """Keep copies of the parent's objects from being finalised."""
        self._inherited.append(copies)

    def after_fork(self) -> None:
        """In the child: a thread does not survive a fork, a held lock does."""
        self.starting = threading.Lock()
        for item in list(self._open):
            item.leave()
        self._open.clear()

    def at_exit(self) -> None:
        """Deliver what can be delivered within `AT_EXIT`."""
        deadline = time.monotonic() + AT_EXIT
        for item in list(self._open):
            item.close(max(0.0, deadline - time.monotonic()))


LIFETIMES = Lifetimes()
"""The ones of this process."""
os.register_at_fork(after_in_child=LIFETIMES.after_fork)
atexit.register(LIFETIMES.at_exit)
