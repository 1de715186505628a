"""Whether the store can do its work, found out and not assumed."""

from pathlib import Path

from learnmech.collector.store import Store, Unavailable
from learnmech.collector.store.migrate import prepare


class Readiness:
    """Asks the database behind an open store. Make it right after the store was opened.

    SQLite goes on writing into a file that was deleted or replaced, without an error: whatever is acknowledged then is
    lost when the process ends. So the file is compared with the one that was opened.
    """

    def __init__(self, store: Store) -> None:
        """Remember which file it is, where there is one."""
        self._store = store
        self._file = Path(str(store.database.url.database)).absolute() if store.database.sqlite else None
        self._identity = self._look()

    def check(self) -> None:
        """Make sure that the database is there, answers, and has the schema of this version.

        Raises:
            StoreError: It does not; the sentence says why.
        """  # noqa: DOC502 (raised by what it calls)
        self.check_file()
        prepare(self._store.database, create=False)

    def check_file(self) -> None:
        """Make sure that the database file is still the one that was opened. Costs microseconds: it is asked per batch.

        Raises:
            Unavailable: It was deleted or replaced.
        """
        if self._look() != self._identity:
            raise Unavailable(
                f"{self._store.url} was deleted or replaced while it was in use; put it back or move it away, then "
                "start the collector again"
            )

    def _look(self) -> tuple[int, int] | None:
        try:
            found = self._file.stat() if self._file is not None else None
        except OSError:
            return None
        return None if found is None else (found.st_dev, found.st_ino)
