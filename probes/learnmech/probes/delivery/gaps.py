"""What had to be given up, kept until a frame can tell the collector: a hole in the data that explains itself."""

from dataclasses import dataclass

from learnmech.wire import Event


@dataclass(slots=True)
class Gap:
    """Consecutive frames that will not arrive."""

    first: int
    last: int
    first_step: int
    last_step: int
    reason: str


class Gaps:
    """Gaps not yet reported. Not thread-safe: its owner holds a lock.

    A report travels in a frame, and that frame may be lost like any other: then its gaps wait again.

    Attributes:
        frames: Frames lost so far.
    """

    def __init__(self) -> None:
        self.frames = 0
        self._waiting: list[Gap] = []
        self._told: list[tuple[int, Gap]] = []  # with the sequence of the frame that carries the report

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, first: int, last: int, first_step: int, last_step: int, reason: str) -> None:
        """Add frames by sequence and step, both ends included."""
        self.frames += last - first + 1
        again = [gap for carrier, gap in self._told if first <= carrier <= last]
        self._told = [(carrier, gap) for carrier, gap in self._told if not first <= carrier <= last]
        merged: list[Gap] = []
        for gap in sorted([*self._waiting, *again, Gap(first, last, first_step, last_step, reason)], key=_by_first):
            previous = merged[-1] if merged else None
            if previous is not None and previous.reason == gap.reason and previous.last + 1 == gap.first:
                previous.last, previous.last_step = gap.last, gap.last_step
            else:
                merged.append(gap)
        self._waiting = merged

    def events(self, step: int, now: float) -> list[Event]:
        """Return one event for each gap that waits; `told` once they are written."""
        return [
            Event(
                kind="gap",
                step=step,
                time=now,
                message=f"measurements of steps {gap.first_step} to {gap.last_step} are missing: {gap.reason}",
                severity="warning",
                data={
                    "first_sequence": gap.first,
                    "last_sequence": gap.last,
                    "first_step": gap.first_step,
                    "last_step": gap.last_step,
                    "frames": gap.last - gap.first + 1,
                    "reason": gap.reason,
                },
            )
            for gap in self._waiting
        ]

    def told(self, carrier: int) -> None:
        """Note that the frame with this sequence carries the report of everything that waits."""
        self._told.extend((carrier, gap) for gap in self._waiting)
        self._waiting = []

    def settle(self, acked: int) -> None:
        """Forget the reports that arrived."""
        self._told = [(carrier, gap) for carrier, gap in self._told if carrier > acked]


def _by_first(gap: Gap) -> int:
    return gap.first
