"""One batch, one transaction: stored once, however often it arrives, in whatever order.

Frames are known by (run, attempt, writer, sequence), points by (series, step); a point that is there stays as it is, so
the first writer wins, and the writer that came second has it counted in `writer.conflicts`. The run's row is locked
first: batches of one run wait for each other, those of different runs do not (on PostgreSQL).
"""

import logging
from collections.abc import Iterable
from dataclasses import replace

import msgspec
import sqlalchemy as sa

from learnmech.collector.store import attempts, bulk, events, registry, requests
from learnmech.collector.store.engine import clean
from learnmech.collector.store.ledger import Ledger
from learnmech.collector.store.plan import MAX_SERIES, Plan, PointRow, make
from learnmech.collector.store.registry import Known, SeriesKey
from learnmech.collector.store.schema import attempt, method, point, run, series, tick, writer
from learnmech.wire import Ack, Batch

logger = logging.getLogger("learnmech.collector.store")

# Built once: for small batches, building statements would cost as much as running them.
_OF: sa.BindParameter[int] = sa.bindparam("of")
_LAST_STEPS = sa.select(series.c.series_id, series.c.last_step).where(
    series.c.run_id == _OF, series.c.series_id.in_(sa.bindparam("numbers", expanding=True))
)
_FIRST: sa.BindParameter[int] = sa.bindparam("first")
_LAST: sa.BindParameter[int] = sa.bindparam("last")
_GROW_SERIES = (
    sa.update(series)
    .where(series.c.run_id == _OF, series.c.series_id == sa.bindparam("number"))
    .values(
        points=series.c.points + sa.bindparam("more"),
        first_step=sa.case((series.c.first_step > _FIRST, _FIRST), else_=series.c.first_step),
        last_step=sa.case((series.c.last_step < _LAST, _LAST), else_=series.c.last_step),
    )
)
_THIS_ATTEMPT = (attempt.c.run_id == _OF, attempt.c.attempt == sa.bindparam("number"))
_LAST_TICK = sa.select(attempt.c.last_step).where(*_THIS_ATTEMPT)
_ADVANCE = sa.update(attempt).where(*_THIS_ATTEMPT).values(last_step=_LAST)
_NEW_MARK = sa.or_(run.c.judge_from.is_(None), run.c.judge_from > _FIRST)
_MARK_RUN = (
    sa.update(run)
    .where(run.c.run_id == _OF)
    .values(
        points=run.c.points + sa.bindparam("more"),
        judge_from=sa.case((_NEW_MARK, _FIRST), else_=run.c.judge_from),
    )
)


def ingest(connection: sa.Connection, cache: registry.Cache, batch: Batch, received: float) -> tuple[Ack, Known]:
    """Store a batch in the transaction of `connection`.

    Returns:
        The answer, and what is known of the run once the transaction is committed.
    """
    held = registry.lock(connection, batch, received)
    run_id = held.run_id
    known = cache.get(batch.run.id, run_id)
    known, number, cut = attempts.register(connection, known, batch, received)
    batch = msgspec.structs.replace(batch, attempt=number)  # from here on by its number in the store
    known, writer_id = registry.register_writer(connection, known, batch, received)
    judge_from = [] if cut is None else [cut]
    accepted = duplicates = 0
    plan = Plan()
    if batch.frames:
        ledger = Ledger.read(connection, run_id, writer_id, [frame.sequence for frame in batch.frames])
        book = SeriesBook(connection, run_id, batch.attempt, known.series.get(batch.attempt, {}))
        plan = make(batch, ledger.is_new, book.id_of)
        if plan.frames:
            ledger.write(connection, [frame.sequence for frame in plan.frames])
        fresh = _new_points(connection, run_id, plan, book)
        known = _store_points(connection, known, fresh)
        book.write(connection, fresh)
        known = replace(known, series={**known.series, batch.attempt: book.ids})
        accepted = sum(len(steps) for steps in fresh.values())
        conflicts = plan.conflicts + sum(len(steps) for steps in plan.points.values()) - accepted
        duplicates = plan.repeated + conflicts
        if conflicts:
            _note_conflicts(connection, batch, run_id, writer_id, conflicts)
        judge_from += [min(steps) for steps in fresh.values() if steps]
        _store_ticks(connection, run_id, batch.attempt, plan, received)
        happened = [item for frame in plan.frames for item in frame.events]
        events.add(connection, run_id, batch.attempt, happened, received)
    if judge_from:
        connection.execute(_MARK_RUN, {"of": run_id, "more": accepted, "first": min(judge_from)})
    last = max((frame.sequence for frame in batch.frames), default=-1)
    asked = requests.tell(connection, held, batch.attempt)
    return Ack(accepted, duplicates, plan.rejected, last, received, asked), known


class SeriesBook:
    """The series of one attempt: finds their numbers, makes new ones, keeps count and first and last step."""

    def __init__(self, connection: sa.Connection, run_id: int, number: int, ids: dict[SeriesKey, int]) -> None:
        self.ids = ids
        self.made: dict[SeriesKey, int] = {}
        self._connection, self._run_id, self._attempt = connection, run_id, number
        self._next: int | None = None

    def id_of(self, key: SeriesKey, *, make: bool) -> int | None:
        """Return the number of a series, a new one if need be and wanted; None when there is none."""
        found = self.ids.get(key)
        if found is not None:
            return found
        if self._next is None:
            self._read()
            found = self.ids.get(key)
        if found is None and make and self._next is not None and self._next <= MAX_SERIES:
            found = self.ids[key] = self.made[key] = self._next
            self._next += 1
        return found

    def _read(self) -> None:
        """Read what other processes have made meanwhile; from here on `ids` is a copy of ours."""
        mine = series.c.run_id == self._run_id
        query = sa.select(series.c.observable, series.c.scope, series.c.series_id).where(
            mine, series.c.attempt == self._attempt
        )
        self.ids = {(row[0], row[1]): row[2] for row in self._connection.execute(query)}
        last = self._connection.execute(sa.select(sa.func.max(series.c.series_id)).where(mine)).scalar()
        self._next = (last or 0) + 1

    def last_steps(self, ids: Iterable[int]) -> dict[int, int]:
        """Return the last stored step of those series that have one."""
        found: dict[int, int] = {}
        for some in bulk.chunks(ids):
            rows = self._connection.execute(_LAST_STEPS, {"of": self._run_id, "numbers": some})
            found.update((row[0], row[1]) for row in rows)
        return found

    def write(self, connection: sa.Connection, fresh: dict[int, dict[int, PointRow]]) -> None:
        """Note what was added to each series."""
        made = {number: key for key, number in self.made.items()}
        new, grown = [], []
        for number, steps in fresh.items():
            if not steps:
                continue
            first, last = min(steps), max(steps)
            if number in made:
                observable, scope = made[number]
                new.append(
                    {
                        "run_id": self._run_id,
                        "series_id": number,
                        "attempt": self._attempt,
                        "observable": observable,
                        "scope": scope,
                        "points": len(steps),
                        "first_step": first,
                        "last_step": last,
                    }
                )
            else:
                grown.append({"of": self._run_id, "number": number, "more": len(steps), "first": first, "last": last})
        if new:
            connection.execute(sa.insert(series), new)
        if grown:
            connection.execute(_GROW_SERIES, grown)


def _new_points(connection: sa.Connection, run_id: int, plan: Plan, book: SeriesBook) -> dict[int, dict[int, PointRow]]:
    """Leave out the points that are stored already. Points after a series' last step, the usual case, need no look."""
    made = set(book.made.values())
    last_steps = book.last_steps(number for number in plan.points if number not in made)
    doubtful = {
        number: late
        for number, steps in plan.points.items()
        if (late := [step for step in steps if step <= last_steps.get(number, -1)])
    }
    there: set[tuple[int, int]] = set()
    all_steps = sorted({step for late in doubtful.values() for step in late})
    for numbers in bulk.chunks(doubtful):
        for steps in bulk.chunks(all_steps):
            query = sa.select(point.c.series_id, point.c.step).where(
                point.c.run_id == run_id, point.c.series_id.in_(numbers), point.c.step.in_(steps)
            )
            there.update((row[0], row[1]) for row in connection.execute(query))
    if not there:
        return plan.points
    return {
        number: {step: row for step, row in steps.items() if (number, step) not in there}
        for number, steps in plan.points.items()
    }


def _store_points(connection: sa.Connection, known: Known, fresh: dict[int, dict[int, PointRow]]) -> Known:
    names = {row[4] for steps in fresh.values() for row in steps.values() if row[4]}
    if not names <= known.methods.keys():
        known = replace(known, methods=_methods(connection, known.run_id, names))
    methods, run_id = known.methods, known.run_id
    rows = [
        (run_id, number, step, value, stderr, status, nonfinite, methods[name] if name else None, cost, reason)
        for number, steps in sorted(fresh.items())
        for step, (value, stderr, status, nonfinite, name, cost, reason) in sorted(steps.items())
    ]
    if rows:
        bulk.insert(connection, point, rows)
    return known


def _methods(connection: sa.Connection, run_id: int, names: set[str]) -> dict[str, int]:
    query = sa.select(method.c.name, method.c.method_id).where(method.c.run_id == run_id)
    found: dict[str, int] = {row[0]: row[1] for row in connection.execute(query)}
    for name in sorted(names - found.keys()):
        found[name] = max(found.values(), default=0) + 1
        connection.execute(sa.insert(method).values(run_id=run_id, method_id=found[name], name=clean(name)))
    return found


def _note_conflicts(connection: sa.Connection, batch: Batch, run_id: int, writer_id: int, conflicts: int) -> None:
    key = (writer.c.run_id == run_id, writer.c.writer_id == writer_id)
    before = connection.execute(
        sa.update(writer)
        .where(*key)
        .values(conflicts=writer.c.conflicts + conflicts)
        .returning(writer.c.conflicts - conflicts)
    ).scalar_one()
    if not before:
        logger.warning(
            "run %s: writer %s (rank %d) sent %d measurements that were already recorded for the same step; the first "
            "ones are kept (counted in writer.conflicts from here on)",
            batch.run.name,
            batch.writer,
            batch.rank,
            conflicts,
        )


def _store_ticks(connection: sa.Connection, run_id: int, number: int, plan: Plan, received: float) -> None:
    if not plan.ticks:
        return
    mine = {"of": run_id, "number": number}
    last = connection.execute(_LAST_TICK, mine).scalar_one()
    rows = [
        (run_id, number, step, item.time, received, item.samples, item.tokens)
        for step, item in sorted(plan.ticks.items())
    ]
    new = [row for row in rows if last is None or row[2] > last]
    bulk.merge_ticks(connection, [row for row in rows if last is not None and row[2] <= last])
    if new:
        bulk.insert(connection, tick, new)
        connection.execute(_ADVANCE, {**mine, "last": new[-1][2]})
