"""Is this database ours, how old is it, and bringing it forward: one chain of Alembic revisions for both engines."""

import logging
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from learnmech.collector.store import views
from learnmech.collector.store.engine import Database
from learnmech.collector.store.errors import CannotOpen, NeedsUpgrade, NotOurs, TooNew
from learnmech.collector.store.schema import REVISION, VERSION_TABLE, metadata

# Alembic is imported where it is used: opening a database that is up to date, the usual case, does without.
if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

logger = logging.getLogger("learnmech.collector.store")

MIGRATIONS = Path(__file__).with_name("migrations")
"""Alembic's folder, part of the wheel."""

OLDEST_SQLITE = (3, 35, 0)
"""First version with RETURNING."""

# Any number that other programs on the server are unlikely to lock: "lmch" in ASCII.
_ADVISORY_LOCK = 0x6C6D6368


def scripts() -> "ScriptDirectory":
    """Return the chain of revisions."""
    from alembic.script import ScriptDirectory

    return ScriptDirectory.from_config(_config())


def _config(connection: sa.Connection | None = None) -> "Config":
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def prepare(database: Database, *, create: bool) -> None:
    """Make sure that the database is ours and up to date; make the tables in an empty one.

    An SQLite file is upgraded on the spot: it belongs to whoever opens it. A PostgreSQL server serves several programs,
    so there somebody says when (`upgrade`).

    Args:
        database: The database.
        create: Make the tables if the database is empty.

    Raises:
        NotOurs: It holds other tables.
        TooNew: A newer learnmech upgraded it.
        NeedsUpgrade: It is older than this code, and on PostgreSQL.
        CannotOpen: It is empty and `create` is false.
    """  # noqa: DOC502 (some are raised by what it calls)
    if database.sqlite:
        _check_file(database, create=create)
    with database.reading() as connection:
        found = _revision(database, connection)
    if found == REVISION:
        return
    if found is None and not create:
        raise CannotOpen(f"{database.shown} is empty; `learnmech db upgrade` or `learnmech collect` makes the tables")
    if found is not None and not database.sqlite:
        raise NeedsUpgrade(
            f"{database.shown} is at revision {found}, this learnmech needs {REVISION}; back it up, then run "
            f"`learnmech db upgrade`"
        )
    upgrade(database)


def upgrade(database: Database) -> str:
    """Bring the database to this code's revision, in one transaction, and return the revision it had (`''` if empty).

    Raises:
        NotOurs: It holds other tables.
        TooNew: A newer learnmech upgraded it.
    """  # noqa: DOC502 (raised by what it calls)
    if database.sqlite:
        _check_file(database, create=True)
    # Looked at before it is opened for writing: that alone would switch a foreign file to WAL.
    with database.reading() as connection:
        _revision(database, connection)
    with database.writing() as connection:
        if not database.sqlite:
            # Two processes may find an empty database at once; the second then finds it made.
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
        found = _revision(database, connection)
        if found != REVISION:
            from alembic import command

            views.drop(connection)
            command.upgrade(_config(connection), "head")
            views.create(connection)
            logger.info("%s: schema at revision %s (was: %s)", database.shown, REVISION, found or "empty")
    return found or ""


def _check_file(database: Database, *, create: bool) -> None:
    """Refuse what SQLite would only refuse later, and with less to say.

    Never by opening the file: closing it again would drop every lock that this process holds on it (POSIX; "How to
    corrupt an SQLite database", section 2.2). The next program that reads the database would then take itself for the
    last one and delete the write-ahead log that we go on committing into.

    Raises:
        CannotOpen: It is a folder, or missing, or this Python's SQLite is too old.
    """
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        raise CannotOpen(
            f"this Python has SQLite {sqlite3.sqlite_version}, and the store needs "
            f"{'.'.join(map(str, OLDEST_SQLITE))} or newer; use a newer Python, or PostgreSQL"
        )
    name = database.url.database or ""
    if name.startswith("file:"):
        return
    path = Path(name)
    if path.is_dir():
        raise CannotOpen(f"{database.shown} is a folder; expected a file in it, such as {path / 'learnmech.db'}")
    if not path.exists():
        if not create:
            raise CannotOpen(f"{database.shown}: there is no such file; expected a database that learnmech made")
        if not path.parent.is_dir():
            raise CannotOpen(
                f"{database.shown}: the folder {path.parent} does not exist; make it: mkdir -p {path.parent}"
            )
        return


def _revision(database: Database, connection: sa.Connection) -> str | None:
    """Return the database's revision, None when it is empty."""
    tables = set(sa.inspect(connection).get_table_names())
    if VERSION_TABLE not in tables:
        if not tables:
            return None
        some = ", ".join(sorted(tables)[:3]) + (", ..." if len(tables) > 3 else "")
        raise NotOurs(
            f"{database.shown} holds other tables ({some}) and none of learnmech's; "
            "expected an empty database or one that learnmech made: give it one of its own"
        )
    found = connection.execute(sa.select(sa.column("version_num")).select_from(sa.table(VERSION_TABLE))).scalar()
    if found is None:
        return None
    if found not in {script.revision for script in scripts().walk_revisions()}:
        raise TooNew(
            f"{database.shown} is at revision {found}, and this learnmech knows revisions up to {REVISION}; it was "
            "upgraded by a newer one: pip install --upgrade learnmech"
        )
    return str(found)


def differences(database: Database) -> list[object]:
    """Return how the tables differ from what this code declares; empty when all is well."""
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    with database.reading() as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": VERSION_TABLE, "compare_type": True, "include_object": _is_table_of_ours}
        )
        return list(compare_metadata(context, metadata))


def _is_table_of_ours(_item: object, name: str | None, kind: str, _reflected: bool, _other: object) -> bool:
    return not (kind == "table" and name in (VERSION_TABLE, *views.VIEWS))
