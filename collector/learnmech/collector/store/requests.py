"""Requests to measure now: one waits in the run's row, which every batch locks and reads, until an answer carries it.

Numbers count up over the whole run, so that a trainer, which remembers the last one that it heard, takes each request
for one. A request is for the attempt that it was made of: the next one, which starts from nothing, hears only its own.
"""

import math

import sqlalchemy as sa

from learnmech.collector.store import events
from learnmech.collector.store.errors import UnknownRun
from learnmech.collector.store.registry import Held
from learnmech.collector.store.rows import Asked
from learnmech.collector.store.schema import attempt, event, run
from learnmech.wire import Event

KIND = "measure_requested"
PAUSE = 5.0
"""Seconds in which requests are one: each costs a training a measurement, whatever its budget says."""

_TOLD = sa.update(run).where(run.c.run_id == sa.bindparam("of")).values(told=run.c.asked)


def ask(connection: sa.Connection, uuid: str, now: float) -> Asked:
    """Ask the newest attempt of a run to measure, unless a request waits already.

    Raises:
        UnknownRun: There is no run with this id.
    """
    query = sa.select(run).where(run.c.uuid == uuid)
    row = connection.execute(query.with_for_update()).one_or_none()  # SQLite holds the whole database by now
    if row is None:
        raise UnknownRun(uuid)
    if row.asked_of == row.attempt and row.told != row.asked:
        return Asked(row.asked, waited=True)
    # queries of their own: the snapshot of the first may be older than the row that it waited for
    of_newest = (attempt.c.run_id == row.run_id, attempt.c.attempt == row.attempt)
    step = connection.execute(
        sa.select(sa.func.coalesce(attempt.c.last_step, attempt.c.start_step)).where(*of_newest)
    ).scalar_one()
    if now - _last(connection, row.run_id, row.attempt) < PAUSE:
        return Asked(row.asked, waited=True)
    number = (row.asked or 0) + 1
    values = {"asked": number, "asked_of": row.attempt, "revision": run.c.revision + 1}
    connection.execute(sa.update(run).where(run.c.run_id == row.run_id).values(**values))
    said = Event(KIND, step, now, "somebody asked for a measurement now", data={"request": number})
    events.add(connection, row.run_id, row.attempt, [said], now)
    return Asked(number, waited=False)


def _last(connection: sa.Connection, run_id: int, number: int) -> float:
    """Return when an attempt was last asked; minus infinity if it never was."""
    mine = (event.c.run_id == run_id, event.c.attempt == number, event.c.kind == KIND)
    found = connection.execute(sa.select(sa.func.max(event.c.received)).where(*mine)).scalar()
    return -math.inf if found is None else float(found)


def tell(connection: sa.Connection, held: Held, number: int) -> int:
    """Return the number of the last request made of an attempt, 0 if there is none, and note that it was told.

    An answer may be lost, so it is told again with every one that follows.
    """
    if held.asked is None or held.asked_of != number:
        return 0
    if held.told != held.asked:
        connection.execute(_TOLD, {"of": held.run_id})
    return held.asked
