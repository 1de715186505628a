"""The guard around every moment of the engine: it keeps the engine's own failures from the training, and times it."""

import logging
import time
from types import TracebackType
from typing import Self

logger = logging.getLogger("learnmech.probes")

LIMIT = 3
"""Failures of the engine itself after which it stops measuring: each is a bug, and the log is no place to repeat it."""


class Guard:
    """Accounts for the time of what runs inside, and suppresses its exceptions.

    KeyboardInterrupt and SystemExit pass, and so does everything if `strict`.

    Args:
        strict: True to suppress nothing; for tests.

    Attributes:
        seconds: Time spent inside.
        open: False once the engine has failed too often.
    """

    def __init__(self, *, strict: bool) -> None:
        self.seconds = 0.0
        self.open = True
        self._strict = strict
        self._failures = 0
        self._begin = 0.0

    def __enter__(self) -> Self:
        self._begin = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.seconds += time.perf_counter() - self._begin
        if kind is None or self._strict or not issubclass(kind, Exception):
            return False
        self._failures += 1
        logger.error("learnmech itself failed (training goes on): %r", error)
        if self._failures >= LIMIT:
            self.open = False
            logger.error("learnmech measures nothing more in this run after %d such failures", LIMIT)
        return True
