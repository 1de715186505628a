"""Curves for a screen: columns, thinned on the server to the last value, minimum and maximum of each bucket of steps.

Buckets are a power of two steps wide and start at multiples of it, so that a growing run redraws the same buckets
until it has doubled.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import sqlalchemy as sa

from learnmech.collector.store.bulk import chunks
from learnmech.collector.store.codes import STATUS_OF, VERDICT_OF
from learnmech.collector.store.schema import attempt, law_point, law_series, point, run, series, tick

Axis = Literal["step", "samples", "tokens", "time"]
"""What the x axis shows."""

Columns = dict[str, list[Any]]
"""Equally long lists by name, in order of step."""

MAX_POINTS = 100_000
"""Most points that one answer holds."""


def observations(
    connection: sa.Connection,
    run_id: int,
    observable: str,
    scope: str,
    *,
    after_step: int = -1,
    points: int = 2000,
    x: Axis = "step",
) -> Columns:
    """Return the columns step, x, value, lower, upper, stderr, status of one series.

    With more than `points` points, each row stands for a bucket: `value`, `stderr` and `status` are its last point's,
    `lower` and `upper` its extremes. Otherwise each row is a point, and `lower` and `upper` are None.
    """
    named = (series.c.observable == observable, series.c.scope == scope)
    spans = _spans(connection, series, series.c.series_id, named, run_id)
    source = _Source(connection, run_id, point, point.c.series_id, spans, after_step, x)
    names = ("value", "stderr", "status")
    rows, extremes = source.read([point.c[name] for name in names], point.c.value, points)
    columns = _columns(rows, ("step", "x", "time", *names))
    edges = list(zip(*extremes, strict=True)) if extremes else ([None] * len(rows),) * 2
    return {
        "step": columns["step"],
        "x": columns["x"],
        "value": columns["value"],
        "lower": list(edges[0]),
        "upper": list(edges[1]),
        "stderr": columns["stderr"],
        "status": [STATUS_OF[code].value for code in columns["status"]],
    }


def residuals(
    connection: sa.Connection,
    run_id: int,
    law: str,
    scope: str,
    *,
    after_step: int = -1,
    points: int = 2000,
    x: Axis = "step",
) -> Columns:
    """Return the columns of a law in a scope: measured beside predicted, thinned to the last point of each bucket."""
    named = (law_series.c.law == law, law_series.c.scope == scope)
    spans = _spans(connection, law_series, law_series.c.law_series_id, named, run_id)
    source = _Source(connection, run_id, law_point, law_point.c.law_series_id, spans, after_step, x, timed=True)
    names = ("measured", "measured_stderr", "predicted", "lower", "upper", "ratio", "verdict", "reason")
    rows, _ = source.read([law_point.c[name] for name in names], None, points)
    columns = _columns(rows, ("step", "x", "time", *names))
    columns["verdict"] = [VERDICT_OF[code].value for code in columns["verdict"]]
    return columns


class _Span(NamedTuple):
    """The part of a series that one attempt gave and that counts."""

    number: int
    attempt: int
    keep_to: int


def _spans(
    connection: sa.Connection,
    owner: sa.Table,
    number: sa.Column[int],
    named: Sequence[sa.ColumnElement[bool]],
    run_id: int,
) -> list[_Span]:
    """Return the parts of a series; of those that hold points, each holds later steps than the one before."""
    joined = sa.and_(attempt.c.run_id == owner.c.run_id, attempt.c.attempt == owner.c.attempt)
    query = sa.select(number, owner.c.attempt, attempt.c.keep_to).select_from(owner.join(attempt, joined))
    query = query.where(owner.c.run_id == run_id, *named).order_by(attempt.c.keep_to)
    return [_Span(*row) for row in connection.execute(query)]


class _Source:
    """The points of one name in a run, over its attempts, superseded ones left out.

    One range of the key at a time: a join of all would be left to the planner's guesses, which are bad for a run that
    has just begun (145 s instead of 0.1 s were seen).
    """

    def __init__(
        self,
        connection: sa.Connection,
        run_id: int,
        table: sa.Table,
        number: sa.Column[int],
        spans: list[_Span],
        after_step: int,
        x: Axis,
        *,
        timed: bool = False,
    ) -> None:
        self._connection, self._run_id, self._table, self._number = connection, run_id, table, number
        self._spans, self._after_step = spans, after_step
        self._x: Axis = x
        self._clocked = timed or x != "step"

    def read(
        self, numbers: Sequence[sa.Column[Any]], extremes: sa.Column[Any] | None, points: int
    ) -> tuple[list[Sequence[Any]], list[tuple[Any, Any]]]:
        """Return rows (step, x, time, *numbers), and the extremes of each row's bucket if there are buckets."""
        points = max(1, min(points, MAX_POINTS))
        step = self._table.c.step
        bounds = (sa.func.count(), sa.func.min(step), sa.func.max(step))
        found = [self._connection.execute(sa.select(*bounds).where(*self._of(span))).one() for span in self._spans]
        filled = [(span, row) for span, row in zip(self._spans, found, strict=True) if row[0]]
        if sum(row[0] for _, row in filled) <= points:
            whole = [row for span, _ in filled for row in self._rows(span, numbers, None)]
            return whole, []
        width = bucket_width(filled[0][1][1], filled[-1][1][2], points)
        return self._thinned([span for span, _ in filled], numbers, extremes, width)

    def _thinned(
        self, spans: list[_Span], numbers: Sequence[sa.Column[Any]], extremes: sa.Column[Any] | None, width: int
    ) -> tuple[list[Sequence[Any]], list[tuple[Any, Any]]]:
        edge = sa.null() if extremes is None else extremes
        step = self._table.c.step
        ends: dict[int, tuple[_Span, int]] = {}
        edges: dict[int, tuple[Any, Any]] = {}
        for span in spans:
            query = sa.select(sa.func.max(step), sa.func.min(edge), sa.func.max(edge)).where(*self._of(span))
            for last, low, high in self._connection.execute(query.group_by(step // width)):
                bucket = last // width
                # A bucket that an older attempt began: the newer one has its end.
                before = edges.get(bucket, (None, None))
                edges[bucket] = (_least(before[0], low, min), _least(before[1], high, max))
                ends[bucket] = (span, last)
        rows: dict[int, Sequence[Any]] = {}
        for span in spans:
            for some in chunks(last for owner, last in ends.values() if owner is span):
                rows.update((row[0] // width, row) for row in self._rows(span, numbers, some))
        order = sorted(rows)
        return [rows[bucket] for bucket in order], [edges[bucket] for bucket in order]

    def _of(self, span: _Span) -> tuple[sa.ColumnElement[bool], ...]:
        step = self._table.c.step
        return (
            self._table.c.run_id == self._run_id,
            self._number == span.number,
            step > self._after_step,
            step <= span.keep_to,
        )

    def _rows(self, span: _Span, numbers: Sequence[sa.Column[Any]], steps: list[int] | None) -> list[Sequence[Any]]:
        """Return rows (step, x, time, *numbers) of some steps of a span, or of all."""
        step = self._table.c.step
        mine = (tick.c.run_id == self._run_id, tick.c.attempt == span.attempt)
        rows = sa.select(step, *numbers).where(*self._of(span)).order_by(step)
        clock = sa.select(tick.c.step, tick.c.time, tick.c.samples, tick.c.tokens).where(*mine)
        if steps is None:
            clock = clock.where(tick.c.step > self._after_step, tick.c.step <= span.keep_to)
        else:
            rows, clock = rows.where(step.in_(steps)), clock.where(tick.c.step.in_(steps))
        ticks = {row[0]: row for row in self._connection.execute(clock)} if self._clocked else {}
        axis = ("step", "time", "samples", "tokens").index(self._x)
        nothing = (None, None, None, None)
        answer: list[Sequence[Any]] = []
        for row in self._connection.execute(rows):
            found = ticks.get(row[0], nothing)
            answer.append((row[0], found[axis] if axis else row[0], found[1], *row[1:]))
        return answer


def _least(first: float | None, second: float | None, of: Callable[[float, float], float]) -> float | None:
    if first is None or second is None:
        return second if first is None else first
    return of(first, second)


def bucket_width(first: int, last: int, points: int) -> int:
    """Return the narrowest power of two that cuts the steps from first to last into at most `points` buckets.

    >>> bucket_width(0, 99_999, 2000)
    64
    """
    width = 1
    while last // width - first // width + 1 > points:
        width *= 2
    return width


def _columns(rows: Sequence[Sequence[Any]], names: Sequence[str]) -> Columns:
    if not rows:
        return {name: [] for name in names}
    return {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=False)}


def run_number(connection: sa.Connection, uuid: str) -> int | None:
    """Return the number of a run in the tables, None if there is no such run."""
    return connection.execute(sa.select(run.c.run_id).where(run.c.uuid == uuid)).scalar()
