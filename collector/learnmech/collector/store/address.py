"""From a database URL to SQLAlchemy's: two engines, checked before anything is opened."""

import importlib.util

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError

from learnmech.collector.store.errors import EXAMPLES, BadAddress, DriverMissing


def parse(url: str) -> sa.URL:
    """Return the SQLAlchemy URL of a database address, with our driver in it.

    Raises:
        BadAddress: The text is no URL, or names an engine that the store does not know.
        DriverMissing: PostgreSQL is meant and psycopg is not installed.
    """
    try:
        parsed = sa.make_url(url)
    except (ArgumentError, ValueError) as error:
        # Not the text itself: what cannot be parsed may still hold a password.
        raise BadAddress(f"the database address is no URL; expected {EXAMPLES}") from error
    backend = parsed.get_backend_name()
    if backend == "postgresql":
        if importlib.util.find_spec("psycopg") is None:
            raise DriverMissing("PostgreSQL needs the driver psycopg: pip install 'learnmech[postgres]'")
        return parsed.set(drivername="postgresql+psycopg")
    if backend == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise BadAddress("an SQLite database in memory cannot be shared or kept; expected sqlite:///learnmech.db")
        return parsed.set(drivername="sqlite+pysqlite")
    hint = "; write postgresql:// instead" if backend == "postgres" else ""
    raise BadAddress(f"no store on {backend!r}{hint}; expected {EXAMPLES}")


def shown(url: sa.URL) -> str:
    """Return the address as it may be printed: without the password and the driver."""
    return url.set(drivername=url.get_backend_name()).render_as_string(hide_password=True)
