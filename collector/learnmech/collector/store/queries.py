"""What the service and the page ask: runs, series, events, laws. Curves are in `curves`."""

from collections import defaultdict
from typing import Any

import sqlalchemy as sa

from learnmech.collector.store.codes import SEVERITY, STATUS_OF, VERDICT_OF
from learnmech.collector.store.rows import Change, EventRow, LawRow, RunRow, SeriesRow
from learnmech.collector.store.schema import attempt, event, law_point, law_series, point, run, series
from learnmech.collector.store.views import VIEWS

MAX_CHANGES = 1000
"""Most changes of verdict that one law lists, the newest ones."""

MAX_EVENTS = 1000
"""Most events in one answer; more with the last one's id as `after`."""

_SEVERITY_OF = {code: word for word, code in SEVERITY.items()}

# The public view, with the present time as a parameter.
_RUNS = VIEWS["runs"].query("CAST(:now AS DOUBLE PRECISION)")


def runs(connection: sa.Connection, now: float, uuid: str | None = None) -> list[RunRow]:
    """Return the runs, the newest first; only the one with `uuid` if given."""
    where = "" if uuid is None else " WHERE r.uuid = :uuid"
    query = sa.text(_RUNS + where + " ORDER BY r.created DESC, r.run_id DESC").columns(
        tags=sa.JSON(), context=sa.JSON()
    )
    parameters: dict[str, Any] = {"now": now} if uuid is None else {"now": now, "uuid": uuid}
    return [
        RunRow(
            id=row.run_id,
            name=row.run,
            project=row.project,
            status=row.status,
            since=row.since,
            created=row.created,
            last_seen=row.last_seen,
            last_step=row.last_step,
            points=row.points,
            attempts=row.attempts,
            tags=row.tags,
            context=row.context,
            revision=row.revision,
        )
        for row in connection.execute(query, parameters)
    ]


def revision(connection: sa.Connection) -> int:
    """Return a number that grows whenever anything in the store changes."""
    return int(connection.execute(sa.select(sa.func.coalesce(sa.func.sum(run.c.revision), 0))).scalar_one())


def all_series(connection: sa.Connection, run_id: int) -> list[SeriesRow]:
    """Return the series of a run, in order of observable and scope."""
    joined = sa.and_(attempt.c.run_id == series.c.run_id, attempt.c.attempt == series.c.attempt)
    numbers = [_last(point.c[name], series, "series_id") for name in ("step", "value", "stderr", "status", "reason")]
    query = (
        sa.select(series, attempt.c.keep_to, *numbers)
        .select_from(series.join(attempt, joined))
        .where(series.c.run_id == run_id, series.c.first_step <= attempt.c.keep_to)
        .order_by(attempt.c.keep_to)  # oldest first, among those that have points that count
    )
    parts: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for row in connection.execute(query):
        parts[row.observable, row.scope].append(row)
    answer = []
    for (observable, scope), rows in sorted(parts.items()):
        last = rows[-1]
        answer.append(
            SeriesRow(
                observable=observable,
                scope=scope,
                count=sum(_count(connection, row) for row in rows),
                first_step=rows[0].first_step,
                last_step=last.step,
                value=last.value,
                stderr=last.stderr,
                status=STATUS_OF[last.status].value,
                reason=last.reason or "",
            )
        )
    return answer


def _last(column: sa.Column[Any], owner: sa.Table, number: str) -> sa.Label[Any]:
    """Return a number of the last point that counts, looked up at the end of its key.

    A scalar each, not a join: PostgreSQL's guesses for a run that has just begun make joins read the whole run.
    """
    table = column.table
    query = sa.select(column).where(
        table.c.run_id == owner.c.run_id, table.c[number] == owner.c[number], table.c.step <= attempt.c.keep_to
    )
    newest = query.order_by(table.c.step.desc()).limit(1).correlate(attempt, owner)
    return newest.scalar_subquery().label(column.name)


def _count(connection: sa.Connection, row: Any) -> int:
    """Return how many points of a series count: all of them, unless a later attempt superseded some."""
    if row.last_step <= row.keep_to:
        return int(row.points)
    query = sa.select(sa.func.count()).where(
        point.c.run_id == row.run_id, point.c.series_id == row.series_id, point.c.step <= row.keep_to
    )
    return int(connection.execute(query).scalar_one())


def events(connection: sa.Connection, run_id: int, after: int) -> list[EventRow]:
    """Return the events of a run with an id above `after`, at most `MAX_EVENTS`."""
    query = sa.select(event).where(event.c.run_id == run_id, event.c.event_id > after).order_by(event.c.event_id)
    return [
        EventRow(
            id=row.event_id,
            attempt=row.attempt,
            step=row.step,
            time=row.time,
            received=row.received,
            kind=row.kind,
            severity=_SEVERITY_OF[row.severity],
            message=row.message,
            data=row.data,
        )
        for row in connection.execute(query.limit(MAX_EVENTS))
    ]


def laws(connection: sa.Connection, run_id: int) -> list[LawRow]:
    """Return how each law stands in each scope of a run, in order of law and scope."""
    joined = sa.and_(attempt.c.run_id == law_series.c.run_id, attempt.c.attempt == law_series.c.attempt)
    numbers = [_last(column, law_series, "law_series_id") for column in law_point.c if not column.primary_key]
    query = (
        sa.select(law_series.c.law, law_series.c.scope, _last(law_point.c.step, law_series, "law_series_id"), *numbers)
        .select_from(law_series.join(attempt, joined))
        .where(law_series.c.run_id == run_id)
        .order_by(law_series.c.law, law_series.c.scope, attempt.c.keep_to)
    )
    # The newest attempt of each comes last and stays.
    last = {(row.law, row.scope): row for row in connection.execute(query) if row.step is not None}
    changes = _changes(connection, run_id)
    return [
        LawRow(
            law=law,
            scope=scope,
            verdict=VERDICT_OF[row.verdict].value,
            reason=row.reason,
            since_step=row.since_step,
            step=row.step,
            measured=row.measured,
            measured_stderr=row.measured_stderr,
            predicted=row.predicted,
            lower=row.lower,
            upper=row.upper,
            ratio=row.ratio,
            changes=changes[law, scope][-MAX_CHANGES:],
        )
        for (law, scope), row in last.items()
    ]


def _changes(connection: sa.Connection, run_id: int) -> dict[tuple[str, str], list[Change]]:
    joined = sa.and_(attempt.c.run_id == law_series.c.run_id, attempt.c.attempt == law_series.c.attempt)
    query = (
        sa.select(law_series.c.law, law_series.c.scope, law_point.c.step, law_point.c.verdict)
        .select_from(law_series.join(attempt, joined))
        .join(
            law_point,
            sa.and_(
                law_point.c.run_id == law_series.c.run_id + 0,
                law_point.c.law_series_id == law_series.c.law_series_id,
                law_point.c.since_step == law_point.c.step,
                law_point.c.step <= attempt.c.keep_to,
            ),
        )
        .where(law_series.c.run_id == run_id)
        .order_by(law_point.c.step)
    )
    found: dict[tuple[str, str], list[Change]] = defaultdict(list)
    for law, scope, step, verdict in connection.execute(query):
        found[law, scope].append(Change(step, VERDICT_OF[verdict].value))
    return found
