"""Which attempt a batch belongs to, and what that changes for the others; inside the transaction that holds the run.

Attempts are counted from checkpoints, so those resumed from one checkpoint claim the same number. The first to arrive
gets it, a sibling with another identity gets the next free one.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from learnmech.collector.store.codes import ATTEMPT
from learnmech.collector.store.engine import clean, plain
from learnmech.collector.store.lineage import Branch, kept
from learnmech.collector.store.registry import Known, Seen, project_id
from learnmech.collector.store.schema import FOREVER, attempt, run, writer
from learnmech.wire import Batch, Lineage

Rows = Mapping[int, sa.Row[Any]]
"""The attempts of a run, by number."""


def register(connection: sa.Connection, known: Known, batch: Batch, received: float) -> tuple[Known, int, int | None]:
    """Make sure that the attempt of a batch is there, and that what it superseded ends where it starts.

    Returns:
        What is known now, the attempt's number, and the first step at which other points count than before, if any.
    """
    key = (batch.attempt, _id(batch), batch.rank)
    seen = known.attempts.get(key)
    if seen is not None and seen.start <= batch.start_step and seen.run == batch.run:
        return known, seen.number, None
    query = sa.select(attempt).where(attempt.c.run_id == known.run_id)
    rows: Rows = {row.attempt: row for row in connection.execute(query).all()}
    own = _find(connection, known.run_id, rows, batch)
    number, claimed = (_free(rows, batch.attempt), batch.attempt) if own is None else (own.attempt, own.claimed)
    start = batch.start_step if own is None else min(own.start_step, batch.start_step)
    _describe(connection, known.run_id, number, own, batch, received, start)
    branches = [_branch(row) for row in rows.values() if row is not own]
    branches.append(Branch(number, claimed, start, *_lineage(batch)))
    newest, keep_to = kept(branches)
    cut = _keep(connection, known.run_id, rows, keep_to)
    _crown(connection, known.run_id, newest, batch if newest == number else None)
    return replace(known, attempts={**known.attempts, key: Seen(number, start, batch.run)}), number, cut


def _id(batch: Batch) -> str | None:
    return batch.lineage.id if isinstance(batch.lineage, Lineage) else None


def _lineage(batch: Batch) -> tuple[str | None, float | None, str | None]:
    found = batch.lineage
    return (found.id, found.begun, found.parent) if isinstance(found, Lineage) else (None, None, None)


def _branch(row: sa.Row[Any]) -> Branch:
    return Branch(row.attempt, row.claimed, row.start_step, row.identity, row.begun, row.parent)


def _find(connection: sa.Connection, run_id: int, rows: Rows, batch: Batch) -> sa.Row[Any] | None:
    """Return the attempt that a batch belongs to, None if it is not there yet."""
    identity = _id(batch)
    for row in rows.values():
        if row.identity == identity and (identity is not None or row.claimed == batch.attempt):
            return row
    nameless = [row for row in rows.values() if row.identity is None and row.claimed == batch.attempt]
    if nameless:
        # Its earlier batches may have been stored by an older collector, which did not read who it is.
        mine = (writer.c.run_id == run_id, writer.c.attempt == nameless[0].attempt, writer.c.uuid == batch.writer)
        if connection.execute(sa.select(writer.c.writer_id).where(*mine)).first() is not None:
            return nameless[0]
    return None


def _free(rows: Rows, claimed: int) -> int:
    return max(rows) + 1 if claimed in rows else claimed


def _describe(
    connection: sa.Connection,
    run_id: int,
    number: int,
    own: sa.Row[Any] | None,
    batch: Batch,
    received: float,
    start: int,
) -> None:
    """Write down what is known of an attempt now."""
    identity, begun, parent = _lineage(batch)
    described = {
        "start_step": start,
        "rank": batch.rank if own is None else min(own.rank, batch.rank),
        "tags": _told(batch, own, "tags"),
        "context": _told(batch, own, "context"),
        "identity": identity,
        "begun": begun,
        "parent": parent,
    }
    if own is None:
        values = {"claimed": batch.attempt, "keep_to": FOREVER, "started": received, "status": ATTEMPT["running"]}
        connection.execute(sa.insert(attempt).values(run_id=run_id, attempt=number, **described, **values))
    else:
        connection.execute(sa.update(attempt).where(*_key(run_id, number)).values(**described))


def _key(run_id: int, number: int) -> tuple[sa.ColumnElement[bool], ...]:
    return attempt.c.run_id == run_id, attempt.c.attempt == number


def _told(batch: Batch, own: sa.Row[Any] | None, name: str) -> object:
    """Return tags or context of an attempt: what the lowest rank said, completed by what others said."""
    new = plain(getattr(batch.run, name))
    old = {} if own is None else getattr(own, name)
    return {**old, **new} if own is not None and batch.rank < own.rank else {**new, **old}


def _keep(connection: sa.Connection, run_id: int, rows: Rows, keep_to: dict[int, int]) -> int | None:
    """Write down up to where each attempt counts, and return the first step at which that changes what counts."""
    changed = []
    for number, last in keep_to.items():
        # A new attempt has no points yet.
        before = rows[number].keep_to if number in rows else FOREVER
        if before != last:
            connection.execute(sa.update(attempt).where(*_key(run_id, number)).values(keep_to=last))
            if number in rows:
                changed.append(max(min(before, last) + 1, rows[number].start_step))
    return min(changed, default=None)


def _crown(connection: sa.Connection, run_id: int, newest: int, batch: Batch | None) -> None:
    """Let the newest attempt say how the run stands and, if it is the one that is being stored, what it is called."""
    current = connection.execute(sa.select(run.c.attempt).where(run.c.run_id == run_id)).scalar_one()
    if current == newest:
        return
    values: dict[str, object] = {"attempt": newest}
    if batch is not None:
        values |= {"name": clean(batch.run.name), "project_id": project_id(connection, batch.run.project)}
    connection.execute(sa.update(run).where(run.c.run_id == run_id).values(**values))
