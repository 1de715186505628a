"""Whether the store can do its work, found out and not assumed."""

from learnmech.collector.store import Store
from learnmech.collector.store.files import OpenedFiles
from learnmech.collector.store.migrate import prepare


class Readiness:
    """Asks the database behind an open store. Make it right after the store was opened."""

    def __init__(self, store: Store) -> None:
        """Remember which files it is, where there are any."""
        self._store = store
        self._files = OpenedFiles(store.database)

    def check(self) -> None:
        """Make sure that the database is there, answers, and has the schema of this version.

        Raises:
            StoreError: It does not; the sentence says why.
        """  # noqa: DOC502 (raised by what it calls)
        self.check_file()
        prepare(self._store.database, create=False)

    def check_file(self) -> None:
        """Make sure that the database's files are still those that were opened.

        Raises:
            Unavailable: One was deleted or replaced.
        """  # noqa: DOC502 (raised by what it calls)
        self._files.check()
