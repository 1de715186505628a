"""Which frames are stored: sequences kept as intervals, so that exactly-once costs a row per writer, not per frame."""

from collections.abc import Iterable
from dataclasses import dataclass

import sqlalchemy as sa

from learnmech.collector.store.schema import ledger
from learnmech.wire import MAX_STEP

Interval = tuple[int, int]
"""First and last sequence, both included."""


def merge(intervals: Iterable[Interval]) -> list[Interval]:
    """Return the same set as the fewest intervals, in order.

    >>> merge([(5, 7), (0, 4), (10, 10), (6, 8)])
    [(0, 8), (10, 10)]
    """
    merged: list[Interval] = []
    for first, last in sorted(intervals):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return merged


_MINE = (ledger.c.run_id == sa.bindparam("run"), ledger.c.writer_id == sa.bindparam("writer"))
_READ = sa.select(ledger.c.first_sequence, ledger.c.last_sequence).where(
    *_MINE, ledger.c.first_sequence <= sa.bindparam("high"), ledger.c.last_sequence >= sa.bindparam("low")
)
_EXTEND = (
    sa.update(ledger)
    .where(*_MINE, ledger.c.first_sequence == sa.bindparam("first"))
    .values(last_sequence=sa.bindparam("last"))
)


@dataclass(slots=True)
class Ledger:
    """The stored sequences of one writer near a batch."""

    run_id: int
    writer_id: int
    intervals: list[Interval]

    @classmethod
    def read(cls, connection: sa.Connection, run_id: int, writer_id: int, sequences: list[int]) -> "Ledger":
        """Read the intervals that overlap or touch the sequences of a batch."""
        touching = {"low": min(sequences) - 1, "high": min(max(sequences) + 1, MAX_STEP)}
        rows = connection.execute(_READ, {"run": run_id, "writer": writer_id, **touching})
        return cls(run_id, writer_id, [(row[0], row[1]) for row in rows])

    def is_new(self, sequence: int) -> bool:
        """Tell whether a frame is not stored yet."""
        return not any(first <= sequence <= last for first, last in self.intervals)

    def write(self, connection: sa.Connection, sequences: Iterable[int]) -> None:
        """Add the sequences of frames that are stored in this transaction."""
        merged = merge([*self.intervals, *((sequence, sequence) for sequence in sequences)])
        mine = {"run": self.run_id, "writer": self.writer_id}
        if len(self.intervals) == len(merged) == 1 and self.intervals[0][0] == merged[0][0]:
            connection.execute(_EXTEND, {**mine, "first": merged[0][0], "last": merged[0][1]})
            return
        if self.intervals:
            gone = ledger.c.first_sequence.in_([first for first, _ in self.intervals])
            connection.execute(sa.delete(ledger).where(*_MINE, gone), mine)
        connection.execute(
            sa.insert(ledger),
            [
                {"run_id": self.run_id, "writer_id": self.writer_id, "first_sequence": first, "last_sequence": last}
                for first, last in merged
            ],
        )
