"""When a probe measures: every n steps, or whenever the budget allows."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Schedule:
    """Measure at steps `start`, `start + n`, `start + 2 n`, ... whatever it costs.

    Attributes:
        n: Steps between measurements.
        start: First step.
    """

    n: int
    start: int = 0

    def __post_init__(self) -> None:
        if not _is_whole(self.n) or self.n < 1:
            raise ValueError(f"every({self.n!r}): expected a whole number of steps from 1 on, such as every(20)")
        if not _is_whole(self.start) or self.start < 0:
            raise ValueError(f"every({self.n}, start={self.start!r}): expected a step from 0 on, such as start=100")

    def due(self, step: int, since: int) -> bool:
        """Tell whether a measurement is due at `step`, having last looked after step `since` (-1: never).

        A step that could not be measured (the first of a run, a skipped one) is made up for at the next one.
        """
        if step < self.start:
            return False
        latest = step - (step - self.start) % self.n
        return latest > since


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def every(n: int, start: int = 0) -> Schedule:
    """Measure every `n` steps from step `start` on.

    >>> [step for step in range(10) if every(4, start=1).due(step, step - 1)]
    [1, 5, 9]

    Raises:
        ValueError: `n` or `start` is not a whole number in range.
    """  # noqa: DOC502 (raised by Schedule)
    return Schedule(n, start)
