"""Connections: one writer per process on SQLite, a pool on PostgreSQL; readers never write.

SQLite runs in WAL mode. A transaction that reads first and writes later fails under concurrency ("database is locked",
350 000 times in 8 s in a measurement), so writers begin with BEGIN IMMEDIATE and wait for their turn instead.
`synchronous=NORMAL`: a kill loses nothing; a power cut may lose the last commits but never corrupts.
"""

import json
import logging
import math
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event, exc

from learnmech.collector.store.address import shown
from learnmech.collector.store.errors import CannotOpen, InvalidBatch, NotOurs, StoreError, Unavailable

logger = logging.getLogger("learnmech.collector.store")

BUSY_SECONDS = 10.0
"""How long a writer waits for another process's transaction."""

CONNECT_SECONDS = 5
"""How long to wait for a PostgreSQL server that does not answer."""

# A refused connection has no SQLSTATE in psycopg, only libpq's text.
_TURNED_AWAY = ("authentication failed", "no password supplied", "no pg_hba.conf entry", "does not exist")


def plain(item: Any) -> Any:
    """Return a JSON tree that both engines can store: no NaN, no infinities, no NUL, no half surrogates."""
    if isinstance(item, str):
        return clean(item)
    if isinstance(item, float) and not math.isfinite(item):
        return "nan" if math.isnan(item) else "inf" if item > 0 else "-inf"
    if isinstance(item, dict):
        return {clean(str(key)): plain(value) for key, value in item.items()}
    if isinstance(item, list | tuple):
        return [plain(value) for value in item]
    if isinstance(item, bool | int | float) or item is None:
        return item
    return clean(str(item))


def clean(text: str) -> str:
    """Return text that both engines can store: PostgreSQL has no NUL, UTF-8 no half surrogates."""
    if "\0" in text:
        text = text.replace("\0", "\N{REPLACEMENT CHARACTER}")
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="replace").decode()
    return text


def _dumps(item: Any) -> str:
    return json.dumps(plain(item), ensure_ascii=False, separators=(",", ":"))


class Database:
    """An open database: where transactions come from."""

    def __init__(self, url: sa.URL) -> None:
        self.url = url
        self.shown = shown(url)
        self.sqlite = url.get_backend_name() == "sqlite"
        self._turn = threading.RLock() if self.sqlite else None
        if self.sqlite:
            self._writer = _sqlite_engine(url, writer=True)
            self._reader = _sqlite_engine(url, writer=False)
        else:
            settings: dict[str, object] = {"application_name": "learnmech"}
            if "connect_timeout" not in url.query:
                settings["connect_timeout"] = CONNECT_SECONDS
            self._writer = sa.create_engine(url, pool_pre_ping=True, json_serializer=_dumps, connect_args=settings)
            self._reader = self._writer.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """Open a transaction that writes: committed at the end, rolled back on any exception.

        Yields:
            A connection inside the transaction.

        Raises:
            Unavailable: The database does not answer now.
            InvalidBatch: The database refuses what it was given.
            CannotOpen: The file is read-only or damaged.
        """  # noqa: DOC502 (raised by what it calls)
        with translated(self.shown), self._lock(), self._writer.begin() as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Open a transaction that sees one consistent state and cannot write.

        Yields:
            A connection inside the transaction.

        Raises:
            Unavailable: The database does not answer now.
            CannotOpen: The file is damaged.
        """  # noqa: DOC502 (raised by what it calls)
        with translated(self.shown), self._reader.connect() as connection:
            yield connection

    @contextmanager
    def _lock(self) -> Iterator[None]:
        # Threads of this process queue here, in order, instead of polling SQLite's lock.
        if self._turn is None:
            yield
        else:
            with self._turn:
                yield

    def close(self) -> None:
        """Close every connection."""
        self._reader.dispose()
        self._writer.dispose()


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Turn the database's own exceptions into ours."""
    try:
        yield
    except exc.DBAPIError as error:
        translation = _translate(error, where)
        if translation is None:
            raise
        raise translation from error
    except exc.TimeoutError as error:
        raise Unavailable(f"{where}: all connections are busy; retry in a few seconds") from error


def _translate(error: exc.DBAPIError, where: str) -> StoreError | None:
    """Return what a database's exception means; None when it is a mistake in our own SQL."""
    cause = str(error.orig).strip().splitlines()[0] if error.orig is not None and str(error.orig) else str(error)
    if isinstance(error.orig, sqlite3.Error):
        return _translate_sqlite(error.orig, cause, where)
    state = getattr(error.orig, "sqlstate", None)
    if state == "42501":
        return CannotOpen(
            f"{where}: {cause}; expected a user who may create tables in the schema, or use those that are there"
        )
    if state == "25006":
        return CannotOpen(f"{where} is read-only: {cause}; expected the primary server")
    if isinstance(error, exc.DataError | exc.IntegrityError):
        return InvalidBatch(f"{where} refuses this batch: {cause}")
    if any(words in cause for words in _TURNED_AWAY):
        return CannotOpen(f"{where} turned us away: {cause}; check user, password and the name of the database")
    if isinstance(error, exc.OperationalError | exc.InterfaceError | exc.InternalError):
        return Unavailable(f"{where} does not answer: {cause}; is the server running and reachable?")
    return None


def _translate_sqlite(error: sqlite3.Error, cause: str, where: str) -> StoreError | None:
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return Unavailable(f"{where} has been locked by another process for {BUSY_SECONDS:g} s; retry in a few seconds")
    if name == "SQLITE_FULL":
        return Unavailable(f"{where}: the disk is full; make room, then retry")
    if name.startswith("SQLITE_READONLY"):
        return CannotOpen(f"{where} is read-only; give this user write permission to the file and its folder")
    if name.startswith("SQLITE_CANTOPEN"):
        return CannotOpen(
            f"{where} cannot be opened; expected a file in an existing folder that this user may write to"
        )
    if name.startswith("SQLITE_NOTADB"):
        return NotOurs(f"{where} is no SQLite database; expected one of learnmech's, or a new name")
    if name.startswith("SQLITE_CORRUPT"):
        return CannotOpen(f"{where} is damaged ({cause}); restore a backup, or move the file away to start a new one")
    if isinstance(error, sqlite3.IntegrityError | sqlite3.DataError):
        return InvalidBatch(f"{where} refuses this batch: {cause}")
    return None if name in ("", "SQLITE_ERROR", "SQLITE_MISUSE") else Unavailable(f"{where}: {cause}")


def _sqlite_engine(url: sa.URL, *, writer: bool) -> sa.Engine:
    engine = sa.create_engine(
        url,
        poolclass=sa.QueuePool,
        pool_size=1 if writer else 8,
        max_overflow=0 if writer else 24,
        json_serializer=_dumps,
        connect_args={"check_same_thread": False, "timeout": BUSY_SECONDS},
    )

    def connect(connection: sqlite3.Connection, _record: object) -> None:
        # Transactions are ours: the driver would begin them late, and not immediately.
        connection.isolation_level = None
        if writer:
            _use_wal(connection)
            connection.execute("PRAGMA synchronous=NORMAL")
        else:
            connection.execute("PRAGMA query_only=ON")
        connection.execute("PRAGMA cache_size=-32768")

    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writer else "BEGIN")

    event.listen(engine, "connect", connect)
    event.listen(engine, "begin", begin)
    return engine


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch to WAL, waiting for others: this one statement does not honour the busy timeout."""
    deadline = time.monotonic() + BUSY_SECONDS
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorname", "") != "SQLITE_BUSY" or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
