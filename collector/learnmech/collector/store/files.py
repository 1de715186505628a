"""Whether an SQLite database still is the files that were opened."""

from pathlib import Path

from learnmech.collector.store.engine import Database
from learnmech.collector.store.errors import Unavailable


class OpenedFiles:
    """The files behind an open database. Make it right after the database was opened; PostgreSQL has none.

    SQLite goes on writing into files that were deleted or replaced, without an error: whatever is acknowledged then is
    lost when the process ends. So the database and its write-ahead log, where the newest commits are, are compared
    with those that were opened.
    """

    def __init__(self, database: Database) -> None:
        """Remember which files they are."""
        self._shown = database.shown
        self._file = Path(str(database.url.database)).absolute() if database.sqlite else None
        self._log = self._file.with_name(self._file.name + "-wal") if self._file is not None else None
        self._identity, self._log_identity = _identity(self._file), _identity(self._log)

    def check(self) -> None:
        """Make sure that they are still the same. Costs microseconds: it is asked per batch, after the commit.

        Raises:
            Unavailable: One was deleted or replaced.
        """
        if _identity(self._file) != self._identity:
            raise Unavailable(
                f"{self._shown} was deleted or replaced while it was in use; put it back or move it away "
                "(a collector then has to be started again)"
            )
        log = _identity(self._log)
        if self._log_identity is None:
            self._log_identity = log  # a file in another journal mode has none before the first write
        elif log != self._log_identity:
            raise Unavailable(
                f"{self._shown}-wal, the newest part of the database, was deleted or replaced while it was in use; "
                "leave that file to SQLite (a collector now has to be started again)"
            )


def _identity(file: Path | None) -> tuple[int, int] | None:
    try:
        found = file.stat() if file is not None else None
    except OSError:
        return None
    return None if found is None else (found.st_dev, found.st_ino)
