"""What measuring costs the run: since the start, and over the last steps."""

from collections import deque

from learnmech.wire import Measurement

WINDOW = 500
"""Steps over which the recent overhead is told, at least: those of the promise that the budget makes."""


class Overhead:
    """Tells the share of the time that went into measuring.

    Args:
        step: First step of the attempt.
    """

    def __init__(self, step: int) -> None:
        self._marks = deque([(step, 0.0, 0.0)])

    def measured(self, step: int, elapsed: float, spent: float) -> list[Measurement]:
        """Return what to record.

        Args:
            step: The step.
            elapsed: Seconds since the attempt began.
            spent: Those of them that went into measuring.
        """
        if elapsed <= 0:
            return []
        found = [Measurement("overhead", spent / elapsed)]
        self._marks.append((step, elapsed, spent))
        while self._marks[1][0] <= step - WINDOW:
            self._marks.popleft()
        begun, before, paid = self._marks[0]
        if step - begun >= WINDOW and elapsed > before:
            found.append(Measurement("overhead_recent", (spent - paid) / (elapsed - before)))
        return found
