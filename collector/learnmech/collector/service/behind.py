"""Which runs wait for the judge: asked of the store, so that no writer has to tell and no restart forgets."""

import sqlalchemy as sa

from learnmech.collector.store import Store
from learnmech.collector.store.schema import run


def behind(store: Store) -> list[str]:
    """Return the ids of the runs that hold something not judged yet, whoever wrote it."""
    query = sa.select(run.c.uuid).where(run.c.judge_from.is_not(None)).order_by(run.c.run_id)
    with store.database.reading() as connection:
        return list(connection.execute(query).scalars())
