"""The store: the one door to the database for the service, the sink, the judge and the lab."""

import time
from types import TracebackType
from typing import Self

import sqlalchemy as sa

from learnmech.collector.store import curves, ingest, migrate, queries, requests
from learnmech.collector.store.address import parse
from learnmech.collector.store.curves import Axis, Columns
from learnmech.collector.store.engine import Database
from learnmech.collector.store.errors import UnknownRun
from learnmech.collector.store.registry import Cache
from learnmech.collector.store.rows import Asked, EventRow, LawRow, RunRow, SeriesRow
from learnmech.wire import Ack, Batch


class Store:
    """An open database of runs. Safe to use from several threads, and from several processes at once.

    Every method may raise `Unavailable` when the database does not answer now.
    """

    def __init__(self, database: Database) -> None:
        """Use a database that is known to be ours; `open` finds that out."""
        self.database = database
        self._cache = Cache()

    @classmethod
    def open(cls, url: str, *, create: bool = True) -> Self:
        """Open the database at a URL.

        Args:
            url: `sqlite:///learnmech.db`, `postgresql://user:password@host/database`.
            create: Make the tables if the database is empty.

        Raises:
            BadAddress: The URL is malformed or of another engine.
            DriverMissing: PostgreSQL is meant and psycopg is not installed.
            CannotOpen: Missing, empty and not to be made, read-only, or damaged.
            NotOurs: It holds other tables.
            TooNew: A newer learnmech upgraded it.
            NeedsUpgrade: It is older than this code (PostgreSQL only; SQLite files are upgraded on the spot).
            Unavailable: The server does not answer.
        """  # noqa: DOC502 (raised by what it calls)
        database = Database(parse(url))
        try:
            migrate.prepare(database, create=create)
        except BaseException:
            database.close()
            raise
        return cls(database)

    @property
    def url(self) -> str:
        """The address, without the password."""
        return self.database.shown

    def ingest(self, batch: Batch, *, received: float | None = None) -> Ack:
        """Store a batch in one transaction. Storing it again changes nothing but `last_seen`.

        Args:
            batch: The batch.
            received: Seconds since the epoch when it arrived; now by default.

        Raises:
            InvalidBatch: The database will never take it.
            Unavailable: Try again later.
        """  # noqa: DOC502 (raised by what it calls)
        received = time.time() if received is None else received
        with self.database.writing() as connection:
            ack, known = ingest.ingest(connection, self._cache, batch, received)
        self._cache.put(batch.run.id, known)
        return ack

    def ask(self, run_id: str, *, now: float | None = None) -> Asked:
        """Ask a run to measure now: the answer to its next batch says so. A request that waits is not made again.

        Args:
            run_id: The run; whether anybody listens is for the caller to find out (`run`).
            now: Seconds since the epoch; the present time by default.

        Raises:
            UnknownRun: There is no run with this id.
        """  # noqa: DOC502 (raised by what it calls)
        with self.database.writing() as connection:
            return requests.ask(connection, run_id, time.time() if now is None else now)

    def runs(self, *, now: float | None = None) -> list[RunRow]:
        """Return all runs, the newest first."""
        with self.database.reading() as connection:
            return queries.runs(connection, time.time() if now is None else now)

    def run(self, run_id: str, *, now: float | None = None) -> RunRow:
        """Return one run.

        Raises:
            UnknownRun: There is none with this id.
        """
        with self.database.reading() as connection:
            found = queries.runs(connection, time.time() if now is None else now, run_id)
        if not found:
            raise UnknownRun(run_id)
        return found[0]

    def series(self, run_id: str) -> list[SeriesRow]:
        """Return what a run has measured, in order of observable and scope.

        Raises:
            UnknownRun: There is no run with this id.
        """  # noqa: DOC502 (raised by what it calls)
        with self.database.reading() as connection:
            return queries.all_series(connection, _number(connection, run_id))

    def observations(
        self,
        run_id: str,
        observable: str,
        scope: str = "",
        *,
        after_step: int = -1,
        points: int = 2000,
        x: Axis = "step",
    ) -> Columns:
        """Return one series as columns: step, x, value, lower, upper, stderr, status.

        Args:
            run_id: The run.
            observable: The observable; one that was never measured gives empty columns.
            scope: The scope.
            after_step: Only points after this step.
            points: With more points than this, rows are buckets: last value, minimum (`lower`) and maximum (`upper`).
            x: What `x` holds; None where a step has no such count.

        Raises:
            UnknownRun: There is no run with this id.
        """  # noqa: DOC502 (raised by what it calls)
        with self.database.reading() as connection:
            number = _number(connection, run_id)
            return curves.observations(connection, number, observable, scope, after_step=after_step, points=points, x=x)

    def residuals(
        self, run_id: str, law: str, scope: str = "", *, after_step: int = -1, points: int = 2000, x: Axis = "step"
    ) -> Columns:
        """Return a law's residuals as columns.

        These are step, x, time, measured, measured_stderr, predicted, lower, upper, ratio, verdict, reason.

        Args:
            run_id: The run.
            law: The law; one that was never judged gives empty columns.
            scope: The scope.
            after_step: Only points after this step.
            points: With more points than this, rows are the last points of buckets.
            x: What `x` holds.

        Raises:
            UnknownRun: There is no run with this id.
        """  # noqa: DOC502 (raised by what it calls)
        with self.database.reading() as connection:
            number = _number(connection, run_id)
            return curves.residuals(connection, number, law, scope, after_step=after_step, points=points, x=x)

    def laws(self, run_id: str) -> list[LawRow]:
        """Return how each law stands in each scope of a run, with its changes of verdict.

        Raises:
            UnknownRun: There is no run with this id.
        """  # noqa: DOC502 (raised by what it calls)
        with self.database.reading() as connection:
            return queries.laws(connection, _number(connection, run_id))

    def events(self, run_id: str, after: int = 0) -> list[EventRow]:
        """Return the events of a run with an id above `after`, oldest first, at most 1000.

        Raises:
            UnknownRun: There is no run with this id.
        """  # noqa: DOC502 (raised by what it calls)
        with self.database.reading() as connection:
            return queries.events(connection, _number(connection, run_id), after)

    def revision(self) -> int:
        """Return a number that grows whenever anything in the store changes. Cheap: it is there to be polled."""
        with self.database.reading() as connection:
            return queries.revision(connection)

    def close(self) -> None:
        """Close every connection."""
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def upgrade(url: str) -> str:
    """Bring the database at `url` to this code's revision and return the one it had, `''` if it was empty.

    Raises:
        StoreError: It is not ours, newer than this code, or cannot be opened.
    """  # noqa: DOC502 (raised by what it calls)
    database = Database(parse(url))
    try:
        return migrate.upgrade(database)
    finally:
        database.close()


def _number(connection: sa.Connection, run_id: str) -> int:
    found = curves.run_number(connection, run_id)
    if found is None:
        raise UnknownRun(run_id)
    return found
