"""Who is writing: runs and writers get their numbers here, inside the transaction of their first batch.

What is known of a run is cached per process. Cached facts are committed and never change (ids, names), so a cache that
lags behind another process only costs a look-up.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import sqlalchemy as sa

from learnmech.collector.store.engine import clean
from learnmech.collector.store.schema import project, run, writer
from learnmech.wire import Batch, RunInfo

SeriesKey = tuple[str, str]
"""Observable and scope."""


class Held(NamedTuple):
    """A run's row, held until the end of the transaction.

    Attributes:
        run_id: The run's number.
        asked: Number of the last request to measure now, None if there was none.
        asked_of: The attempt that it was made of.
        told: The last one that an answer has carried.
    """

    run_id: int
    asked: int | None
    asked_of: int | None
    told: int | None


class Seen(NamedTuple):
    """An attempt as one of its ranks described it."""

    number: int
    start: int
    run: RunInfo


@dataclass(frozen=True, slots=True)
class Known:
    """What is committed of one run.

    Attributes:
        run_id: Its number.
        attempts: By the number that the attempt claims, its identity (None from an older client) and rank.
        writers: Numbers by attempt and uuid.
        series: Numbers by attempt and key.
        methods: Numbers by name.
    """

    run_id: int
    attempts: dict[tuple[int, str | None, int], Seen] = field(default_factory=dict)
    writers: dict[tuple[int, str], int] = field(default_factory=dict)
    series: dict[int, dict[SeriesKey, int]] = field(default_factory=dict)
    methods: dict[str, int] = field(default_factory=dict)


class Cache:
    """What is known of the runs seen last. Entries are replaced as a whole, after a commit."""

    def __init__(self, size: int = 256) -> None:
        self._size = size
        self._runs: OrderedDict[str, Known] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, uuid: str, run_id: int) -> Known:
        """Return what is known of a run, at least its number."""
        with self._lock:
            known = self._runs.get(uuid)
        # Another number: the run was deleted and came back.
        return known if known is not None and known.run_id == run_id else Known(run_id)

    def put(self, uuid: str, known: Known) -> None:
        """Keep what was committed."""
        with self._lock:
            self._runs[uuid] = known
            self._runs.move_to_end(uuid)
            if len(self._runs) > self._size:
                self._runs.popitem(last=False)


def _later(column: sa.ColumnElement[float], name: str) -> sa.ColumnElement[float]:
    return sa.case((column < sa.bindparam(name), sa.bindparam(name)), else_=column)


def _earlier(column: sa.ColumnElement[float], name: str) -> sa.ColumnElement[float]:
    return sa.case((column > sa.bindparam(name), sa.bindparam(name)), else_=column)


# Built once: for small batches, building statements would cost as much as running them.
_TOUCH = (
    sa.update(run)
    .where(run.c.uuid == sa.bindparam("of"))
    .values(
        revision=run.c.revision + 1,
        last_seen=_later(run.c.last_seen, "received"),
        created=_earlier(run.c.created, "begun"),
    )
    .returning(run.c.run_id, run.c.asked, run.c.asked_of, run.c.told)
)
_INSERT_RUN = sa.text(
    "INSERT INTO run (uuid, project_id, name, created, last_seen, attempt, points, revision, judgements) "
    "VALUES (:uuid, :project_id, :name, :created, :received, :attempt, 0, 0, 0) ON CONFLICT (uuid) DO NOTHING"
)
_TOUCH_WRITER = (
    sa.update(writer)
    .where(writer.c.run_id == sa.bindparam("of"), writer.c.writer_id == sa.bindparam("who"))
    .values(last_seen=_later(writer.c.last_seen, "received"), clock_offset=_earlier(writer.c.clock_offset, "offset"))
)


def lock(connection: sa.Connection, batch: Batch, received: float) -> Held:
    """Return the run's row, holding the run until the end of the transaction: one writer at a time per run."""
    found = _touch(connection, batch, received)
    if found is None:
        connection.execute(
            _INSERT_RUN,
            {
                "uuid": batch.run.id,
                "project_id": project_id(connection, batch.run.project),
                "name": clean(batch.run.name),
                "created": batch.run.created,
                "received": received,
                "attempt": batch.attempt,
            },
        )
        found = _touch(connection, batch, received)
    if found is None:
        raise LookupError(f"run {batch.run.id} was deleted while a batch of it was stored")
    return found


def _touch(connection: sa.Connection, batch: Batch, received: float) -> Held | None:
    values = {"of": batch.run.id, "received": received, "begun": batch.run.created}
    row = connection.execute(_TOUCH, values).one_or_none()
    return None if row is None else Held(*row)


def project_id(connection: sa.Connection, name: str) -> int:
    """Return the number of a project, made if need be."""
    connection.execute(
        sa.text("INSERT INTO project (name) VALUES (:name) ON CONFLICT (name) DO NOTHING"), {"name": clean(name)}
    )
    found = connection.execute(sa.select(project.c.project_id).where(project.c.name == clean(name)))
    return int(found.scalar_one())


def register_writer(connection: sa.Connection, known: Known, batch: Batch, received: float) -> tuple[Known, int]:
    """Make sure that the writer is there; note when it was last seen and how its clock differs.

    Returns:
        What is known now, and the writer's number.
    """
    offset = received - batch.sent
    writer_id = known.writers.get((batch.attempt, batch.writer))
    if writer_id is None:
        query = sa.select(writer.c.writer_id, writer.c.attempt, writer.c.uuid).where(writer.c.run_id == known.run_id)
        found = {(row.attempt, row.uuid): row.writer_id for row in connection.execute(query)}
        writer_id = found.get((batch.attempt, batch.writer))
        if writer_id is None:
            writer_id = max(found.values(), default=0) + 1
            connection.execute(
                sa.insert(writer).values(
                    run_id=known.run_id,
                    writer_id=writer_id,
                    uuid=batch.writer,
                    attempt=batch.attempt,
                    rank=batch.rank,
                    first_seen=received,
                    last_seen=received,
                    clock_offset=offset,
                    conflicts=0,
                )
            )
            return replace(known, writers={**found, (batch.attempt, batch.writer): writer_id}), writer_id
        known = replace(known, writers=found)
    values = {"of": known.run_id, "who": writer_id, "received": received, "offset": offset}
    connection.execute(_TOUCH_WRITER, values)
    return known, writer_id
