"""What can be wrong with a database: each a sentence that says what came, what was expected and what to do."""

from typing import ClassVar

EXAMPLES = "sqlite:///learnmech.db or postgresql://user:password@host/database"


class StoreError(Exception):
    """The store cannot do what was asked.

    Attributes:
        temporary: True when the same call may succeed later without anybody changing anything.
    """

    temporary: ClassVar[bool] = False


class BadAddress(StoreError, ValueError):
    """The database URL is malformed or of an engine that the store does not know."""


class DriverMissing(StoreError):
    """The PostgreSQL driver is not installed."""


class CannotOpen(StoreError):
    """The file is missing, unreadable, read-only, damaged, or the server turned us away."""


class NotOurs(StoreError):
    """The database holds something, but not learnmech's tables."""


class TooNew(StoreError):
    """The database was upgraded by a newer learnmech than this one."""


class NeedsUpgrade(StoreError):
    """The database is older than this learnmech, and upgrading it is a decision of whoever runs it."""


class Unavailable(StoreError):
    """The database does not answer now: unreachable, locked for too long, or its disk is full."""

    temporary = True


class InvalidBatch(StoreError, ValueError):
    """A batch that the database refuses as a whole and always will."""


class UnknownRun(StoreError, KeyError):
    """No run has this id."""

    def __init__(self, run_id: str) -> None:
        """Say which id came."""
        self.run_id = run_id
        super().__init__(
            f"no run {run_id!r} in this store; expected the 32 hexadecimal digits that `learnmech runs` lists"
        )

    def __str__(self) -> str:
        return str(self.args[0])
