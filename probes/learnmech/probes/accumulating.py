"""Of how many micro-batches the updates of a loop consist, and how many examples they hold."""

from typing import Any

from learnmech.probes.isolation.counting import count


class Accumulating:
    """Counts the micro-batches of each update, where the loop tells of them.

    Another number than expected must come twice in a row: once it is the end of an epoch, or a step that was skipped.

    Args:
        declared: Micro-batches per update as the user says; None to find out.

    Attributes:
        expected: Micro-batches of the next update, for all that is known.
    """

    def __init__(self, declared: int | None) -> None:
        self.expected = declared or 1
        self._declared = declared
        self._examples: list[int | None] = []
        self._last = 1
        self._tells_each = False

    def add(self, batch: Any) -> None:
        """Count a micro-batch."""
        self._examples.append(count(batch))

    def of_update(self, batch: Any) -> tuple[int, int | None, int | None]:
        """Return micro-batches of this update, its examples in this process, and those of its last micro-batch.

        Args:
            batch: The last micro-batch.
        """
        last = count(batch)
        told = len(self._examples)
        self._tells_each = self._tells_each or told > 1
        # the last update of an epoch may have fewer: what was told counts, where every micro-batch is told of
        number = told if told and self._tells_each else max(told, self._declared or 1)
        if told < 2:
            return number, None if last is None else last * number, last
        known = [examples for examples in self._examples if examples is not None]
        return number, sum(known) if len(known) == len(self._examples) else None, last

    def begin(self, *, fixed: bool) -> bool:
        """Begin the next update; tell whether it is expected to consist of another number of micro-batches than before.

        Args:
            fixed: True if that must not change any more.
        """
        told, self._examples = len(self._examples), []
        if self._declared or fixed or not told:
            return False
        again, self._last = told == self._last, told
        if told == self.expected or not again:
            return False
        self.expected = told
        return True
