"""Events of a run, in the order in which the store hears of them."""

from collections.abc import Sequence

import sqlalchemy as sa

from learnmech.collector.store.codes import ATTEMPT, RUN_EVENTS, SEVERITY
from learnmech.collector.store.engine import clean, plain
from learnmech.collector.store.schema import attempt, event
from learnmech.wire import Event


def add(connection: sa.Connection, run_id: int, number: int, events: Sequence[Event], received: float) -> None:
    """Write down what happened in an attempt, and what that says of how the attempt stands.

    Args:
        connection: A transaction that holds the run.
        run_id: The run's number.
        number: The attempt's.
        events: What happened.
        received: Seconds since the epoch when the store heard of it.
    """
    if not events:
        return
    last = connection.execute(sa.select(sa.func.max(event.c.event_id)).where(event.c.run_id == run_id)).scalar() or 0
    connection.execute(
        sa.insert(event),
        [
            {
                "run_id": run_id,
                "event_id": last + position,
                "attempt": number,
                "step": item.step,
                "time": item.time,
                "received": received,
                "kind": clean(item.kind),
                "severity": SEVERITY[item.severity],
                "message": clean(item.message),
                "data": plain(item.data),
            }
            for position, item in enumerate(events, start=1)
        ],
    )
    decisive = [(item.time, ATTEMPT[RUN_EVENTS[item.kind]]) for item in events if item.kind in RUN_EVENTS]
    if decisive:
        _decide(connection, run_id, number, *max(decisive))


def _decide(connection: sa.Connection, run_id: int, number: int, time: float, code: int) -> None:
    """Set an attempt's status by the last word on it, whenever that word arrives."""
    later = attempt.c.status_time < time
    same = sa.and_(attempt.c.status_time == time, attempt.c.status < code)
    connection.execute(
        sa.update(attempt)
        .where(attempt.c.run_id == run_id, attempt.c.attempt == number)
        .where(sa.or_(attempt.c.status_time.is_(None), later, same))
        .values(status=code, status_time=time)
    )
