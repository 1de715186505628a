"""Messages for people: noted by any thread, written to the log by the training thread, each cause once."""

import logging
import time
from collections import deque

logger = logging.getLogger("learnmech.delivery")

_QUIET = 60.0  # seconds before a cause that comes and goes is worth another line


class Notices:
    """Log messages on their way from the background thread to the log.

    A log handler takes locks that a fork would copy while they are held, and may write to a terminal that the trainer
    draws a progress bar on; so only the thread that calls into learnmech writes.

    Attributes:
        waiting: What was noted and not yet written; a plain truth test tells whether there is anything to do.
    """

    def __init__(self) -> None:
        self.waiting: deque[tuple[int, str]] = deque(maxlen=100)
        self._active: set[str] = set()
        self._told: dict[str, float] = {}

    def note(self, cause: str, message: str, level: int = logging.WARNING) -> None:
        """Note a message, unless one was noted for the same cause and the cause is not gone since."""
        if cause in self._active:
            return
        self._active.add(cause)
        now = time.monotonic()
        if now - self._told.get(cause, -_QUIET) >= _QUIET:
            self._told[cause] = now
            self.waiting.append((level, message))

    def settle(self, cause: str, message: str) -> None:
        """Note that a cause is gone, if it was there; should it come back, it is told again."""
        if cause in self._active:
            self._active.discard(cause)
            self.waiting.append((logging.INFO, message))

    def write(self) -> None:
        """Write what is waiting to the log."""
        while self.waiting:
            try:
                level, message = self.waiting.popleft()
            except IndexError:
                # Another thread wrote it.
                return
            logger.log(level, message)
