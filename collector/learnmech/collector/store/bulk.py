"""Many rows at once, past SQLAlchemy: COPY on PostgreSQL, executemany on SQLite.

SQLAlchemy's own executemany costs 7 to 10 times as much CPU per row as COPY does.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from learnmech.collector.store.schema import point, tick

_COPY = {
    "point": (
        (
            "COPY point (run_id, series_id, step, value, stderr, status, nonfinite, method_id, cost, reason) "
            "FROM STDIN (FORMAT BINARY)"
        ),
        ("int4", "int4", "int8", "float8", "float8", "int2", "int2", "int4", "float8", "text"),
    ),
    "tick": (
        "COPY tick (run_id, attempt, step, time, received, samples, tokens) FROM STDIN (FORMAT BINARY)",
        ("int4", "int4", "int8", "float8", "float8", "int8", "int8"),
    ),
}
_INSERT = {table.name: str(sa.insert(table).compile(dialect=sqlite.dialect())) for table in (point, tick)}

_MERGE_TICK = sa.text("""
INSERT INTO tick (run_id, attempt, step, time, received, samples, tokens)
VALUES (:run_id, :attempt, :step, :time, :received, :samples, :tokens)
ON CONFLICT (run_id, attempt, step) DO UPDATE SET
  time = CASE WHEN excluded.time < tick.time THEN excluded.time ELSE tick.time END,
  received = CASE WHEN excluded.received < tick.received THEN excluded.received ELSE tick.received END,
  samples = CASE WHEN tick.samples IS NULL OR excluded.samples > tick.samples
                 THEN excluded.samples ELSE tick.samples END,
  tokens = CASE WHEN tick.tokens IS NULL OR excluded.tokens > tick.tokens THEN excluded.tokens ELSE tick.tokens END
""")

CHUNK = 500
"""Values in one IN list: both engines take far more, and plans stay quick."""


def insert(connection: sa.Connection, table: sa.Table, rows: Iterable[Sequence[Any]]) -> None:
    """Insert rows that are known not to be there, with the columns in the table's order."""
    driver: Any = connection.connection.driver_connection
    if connection.dialect.name == "sqlite":
        driver.executemany(_INSERT[table.name], rows)
        return
    statement, types = _COPY[table.name]
    with driver.cursor() as cursor, cursor.copy(statement) as copy:
        copy.set_types(types)
        for row in rows:
            copy.write_row(row)


def merge_ticks(connection: sa.Connection, rows: Iterable[Sequence[Any]]) -> None:
    """Insert ticks that may be there: the earliest time and the largest counts stay."""
    names = [column.name for column in tick.columns]
    parameters = [dict(zip(names, row, strict=True)) for row in rows]
    if parameters:
        connection.execute(_MERGE_TICK, parameters)


def chunks(items: Iterable[int]) -> Iterable[list[int]]:
    """Cut a list into pieces that fit an IN list."""
    listed = list(items)
    return (listed[start : start + CHUNK] for start in range(0, len(listed), CHUNK))
