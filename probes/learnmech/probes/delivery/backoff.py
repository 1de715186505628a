"""When to try again: full jitter, so that a thousand trainers do not knock at one moment."""

import random
import time


class Backoff:
    """Waits that grow from half a second to half a minute, each drawn between nothing and the growing bound.

    Exponential backoff with full jitter (Brooker 2015, AWS Architecture Blog, "Exponential Backoff And Jitter"): of the
    variants compared there the one with the least work for clients and server.
    """

    FIRST = 0.5
    LAST = 30.0
    LEAST = 0.05
    """Seconds; even a lucky draw does not hammer."""
    AT_MOST_ASKED = 600.0
    """Seconds beyond which a server's wish to be left alone is taken for a mistake."""

    def __init__(self) -> None:
        # A generator of its own: the training's random stream is not ours to move.
        self._random = random.Random()
        self._failures = 0
        self._until = 0.0

    @property
    def failures(self) -> int:
        """Failures in a row."""
        return self._failures

    def due(self) -> bool:
        """Whether it is time to try."""
        return time.monotonic() >= self._until

    def failed(self, retry_after: float | None = None, least: float = 0.0) -> float:
        """Note a failure and return the wait in seconds.

        Args:
            retry_after: What the server asked for.
            least: Shortest wait, where a person has to act first.
        """
        bound = min(self.LAST, self.FIRST * 2.0 ** min(self._failures, 16))
        self._failures += 1
        wait = max(self.LEAST, least, self._random.uniform(0.0, bound))
        if retry_after is not None:
            # The wish is the floor, the jitter comes on top: everybody was told the same second.
            wait = max(wait, min(retry_after, self.AT_MOST_ASKED) + self._random.uniform(0.0, 0.1 * bound))
        self._until = time.monotonic() + wait
        return wait

    def succeeded(self) -> None:
        """Forget the failures."""
        self._failures, self._until = 0, 0.0
