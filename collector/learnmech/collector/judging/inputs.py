"""What the judge reads: the attempts, the series that laws look at, and the state just before a step.

Every query is bounded by the steps to be judged or finds one row at the end of a key, so the cost of judging a batch
does not depend on how long the run is.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from learnmech.collector.judging.force import Key, Record
from learnmech.collector.store.bulk import chunks
from learnmech.collector.store.codes import STATUS_OF, VERDICT_OF
from learnmech.collector.store.schema import FOREVER, attempt, law_point, law_series, point, series
from learnmech.laws import Point, Value, Verdict

# Built once: for small batches, building statements would cost as much as running them.
_OF: sa.BindParameter[int] = sa.bindparam("of")
_ATTEMPTS = sa.select(attempt.c.attempt, attempt.c.keep_to, attempt.c.last_step, attempt.c.context).where(
    attempt.c.run_id == _OF
)
_SERIES = sa.select(
    series.c.series_id, series.c.attempt, series.c.observable, series.c.scope, series.c.first_step
).where(series.c.run_id == _OF, series.c.observable.in_(sa.bindparam("observables", expanding=True)))
_RECORDS = sa.select(point.c.series_id, point.c.step, point.c.value, point.c.stderr, point.c.status).where(
    point.c.run_id == _OF,
    point.c.series_id.in_(sa.bindparam("numbers", expanding=True)),
    point.c.step >= sa.bindparam("first"),
    point.c.step <= sa.bindparam("last"),
)


@dataclass(frozen=True, slots=True)
class Gauge:
    """A series that some law looks at, in one attempt."""

    series_id: int
    attempt: int
    key: Key
    keep_to: int


@dataclass(frozen=True, slots=True)
class Standing:
    """How a law stood in a scope: its earlier points, oldest first, the last verdict and where it began."""

    history: tuple[Point, ...] = ()
    verdict: Verdict | None = None
    since_step: int = 0


@dataclass(frozen=True, slots=True)
class Inputs:
    """One run as the judge sees it, inside one transaction.

    Attributes:
        connection: The transaction.
        run_id: The run's number.
        contexts: What each attempt said of itself.
        gauges: The series that laws look at and that have points that count, oldest attempt first.
        kept: The last step that counts, by attempt.
        newest: The newest step of any attempt.
    """

    connection: sa.Connection
    run_id: int
    contexts: dict[int, dict[str, object]]
    gauges: list[Gauge]
    kept: dict[int, int]
    newest: int

    @classmethod
    def read(cls, connection: sa.Connection, run_id: int, observables: Sequence[str]) -> "Inputs":
        """Read what does not depend on the step."""
        rows = connection.execute(_ATTEMPTS, {"of": run_id}).all()
        kept = {row.attempt: row.keep_to for row in rows}
        gauges = [
            Gauge(row.series_id, row.attempt, (row.observable, row.scope), kept[row.attempt])
            for row in connection.execute(_SERIES, {"of": run_id, "observables": observables})
            if row.first_step <= kept[row.attempt]
        ]
        # Of attempts that have points that count, the newer one has the greater `keep_to`.
        gauges.sort(key=lambda gauge: (gauge.keep_to, gauge.series_id))
        newest = max((row.last_step for row in rows if row.last_step is not None), default=-1)
        return cls(connection, run_id, {row.attempt: row.context for row in rows}, gauges, kept, newest)

    def records(self, first: int, until: int | None) -> list[Record]:
        """Return what counts of the steps from `first` to before `until`, in order of step."""
        by_id = {gauge.series_id: gauge for gauge in self.gauges}
        found = []
        last = FOREVER if until is None else until - 1
        for some in chunks(by_id):
            chosen = {"of": self.run_id, "numbers": some, "first": first, "last": last}
            for row in self.connection.execute(_RECORDS, chosen):
                gauge = by_id[row[0]]
                if row[1] <= gauge.keep_to:
                    found.append(Record(row[1], gauge.key, gauge.attempt, row[2], row[3], STATUS_OF[row[4]]))
        return sorted(found, key=lambda record: record[:2])

    def end_of_chunk(self, first: int, observables: frozenset[str], size: int) -> int | None:
        """Return a step after `first` up to which about `size` measurements are to be judged, None when that is all."""
        numbers = [gauge.series_id for gauge in self.gauges if gauge.key[0] in observables]
        if len(numbers) * (self.newest - first + 1) <= size:
            return None
        count = 0
        for some in chunks(numbers):
            query = sa.select(sa.literal(1)).where(*self._from(first), point.c.series_id.in_(some)).limit(size + 1)
            count += self.connection.execute(sa.select(sa.func.count()).select_from(query.subquery())).scalar_one()
        if count <= size:
            return None
        each = max(size // len(numbers), 1)
        ends = []
        for number in numbers:
            query = sa.select(point.c.step).where(*self._from(first), point.c.series_id == number)
            ends.append(self.connection.execute(query.order_by(point.c.step).limit(1).offset(each)).scalar())
        return min((end for end in ends if end is not None), default=None)

    def _from(self, first: int) -> tuple[sa.ColumnElement[bool], ...]:
        return point.c.run_id == self.run_id, point.c.step >= first

    def in_force(self, before: int) -> dict[Key, Value]:
        """Return the values in force just before a step."""
        parts: dict[Key, list[Gauge]] = {}
        for gauge in self.gauges:
            parts.setdefault(gauge.key, []).append(gauge)
        found = {}
        for key, gauges in parts.items():
            value = self._last(gauges, before)
            if value is not None:
                found[key] = value
        return found

    def _last(self, gauges: list[Gauge], before: int) -> Value | None:
        """Return the last value before a step and where it began, going back through the attempts."""
        value = None
        for gauge in reversed(gauges):
            last = self._end(gauge, point.c.step < before)
            if last is None:
                continue
            if value is None:
                value = Value(last.value, last.stderr, last.step, last.step, STATUS_OF[last.status])
            elif last.value != value.value:
                break
            other = self._end(gauge, sa.and_(point.c.step < before, point.c.value.is_distinct_from(value.value)))
            after = point.c.step > (-1 if other is None else other.step)
            begin = self.connection.execute(
                sa.select(point.c.step).where(*self._of(gauge), after).order_by(point.c.step).limit(1)
            ).scalar_one()
            value = Value(value.value, value.stderr, value.step, begin, value.status)
            if other is not None:
                break
        return value

    def _end(self, gauge: Gauge, condition: sa.ColumnElement[bool]) -> Any:
        query = sa.select(point.c.step, point.c.value, point.c.stderr, point.c.status)
        query = query.where(*self._of(gauge), point.c.step <= gauge.keep_to, condition)
        return self.connection.execute(query.order_by(point.c.step.desc()).limit(1)).first()

    def _of(self, gauge: Gauge) -> tuple[sa.ColumnElement[bool], ...]:
        return point.c.run_id == self.run_id, point.c.series_id == gauge.series_id

    def standings(self, windows: dict[str, int], before: int) -> Iterator[tuple[tuple[str, str], Standing]]:
        """Give how each law stood in each scope just before a step.

        Args:
            windows: How many earlier points each law looks back on; other laws are left out.
            before: The step.

        Yields:
            Law and scope, and how it stood.
        """
        query = sa.select(law_series).where(law_series.c.run_id == self.run_id, law_series.c.law.in_(windows))
        owners = sorted(self.connection.execute(query).all(), key=lambda owner: self.kept[owner.attempt], reverse=True)
        rows: dict[tuple[str, str], list[Any]] = {}
        for owner in owners:
            found = rows.setdefault((owner.law, owner.scope), [])
            missing = windows[owner.law] - len(found)
            if missing <= 0:
                continue
            points = sa.select(law_point).where(
                law_point.c.run_id == self.run_id,
                law_point.c.law_series_id == owner.law_series_id,
                law_point.c.step < before,
                law_point.c.step <= self.kept[owner.attempt],
            )
            found += self.connection.execute(points.order_by(law_point.c.step.desc()).limit(missing)).all()
        for name, found in rows.items():
            if found:
                yield name, _standing(found)


def _standing(rows: Iterable[Any]) -> Standing:
    newest_first = list(rows)
    points = []
    for row in reversed(newest_first):
        gone = VERDICT_OF[row.verdict] is Verdict.NOT_APPLICABLE
        points.append(
            Point(
                row.step,
                row.measured,
                row.measured_stderr,
                row.predicted,
                row.predicted_stderr,
                status=STATUS_OF[row.status],
                not_applicable=row.reason if gone else "",
            )
        )
    return Standing(tuple(points), VERDICT_OF[newest_first[0].verdict], newest_first[0].since_step)
