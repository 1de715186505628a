"""What `learnmech db` does: bring a database forward, or say how it stands."""

import typer

from learnmech.collector.store import REVISION, CannotOpen, Store
from learnmech.collector.store import upgrade as bring_forward
from learnmech.collector.store.migrate import differences
from learnmech.sinks import identity


def upgrade(database: str) -> None:
    """Bring the database at a URL to this version's schema; make the tables in an empty one."""
    before = bring_forward(database)
    if before == REVISION:
        typer.echo(f"{identity(database)} is at revision {REVISION} already; nothing to do")
    else:
        typer.echo(f"{identity(database)} is at revision {REVISION} now (before: {before or 'empty'})")


def check(store: Store) -> None:
    """Say that an open database is ours and current.

    Raises:
        CannotOpen: Somebody changed its tables.
    """
    found = differences(store.database)
    if found:
        raise CannotOpen(
            f"{store.url} is at revision {REVISION}, but its tables were changed by hand: {found[0]!r:.200}; "
            "expected them as `learnmech db upgrade` makes them; restore a backup"
        )
    typer.echo(f"{store.url} is ours and current (revision {REVISION})")
