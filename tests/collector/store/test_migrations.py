"""Databases of earlier revisions are brought forward with what they hold."""

import pytest
from alembic import command

from learnmech.collector.store import Asked, NeedsUpgrade, Store, migrate, upgrade
from learnmech.collector.store.address import parse
from learnmech.collector.store.engine import Database
from learnmech.wire import Lineage, RunInfo

RUN = "0123456789abcdef0123456789abcdef"

# Attempt 0 measured the steps 0 to 4, attempt 1 the steps 3 and 4 again.
AT_0001 = [
    "INSERT INTO project (project_id, name) VALUES (1, 'default')",
    f"""INSERT INTO run (run_id, uuid, project_id, name, created, last_seen, attempt, points, revision, judgements)
        VALUES (1, '{RUN}', 1, 'old', 1.0, 2.0, 1, 7, 2, 0)""",
    *(
        f"""INSERT INTO attempt (run_id, attempt, start_step, keep_to, last_step, started, status, rank, tags, context)
            VALUES (1, {number}, {start}, {kept}, 4, 1.0, 0, 0, '{{}}', '{{}}')"""
        for number, start, kept in ((0, 0, 2), (1, 3, 2**63 - 1))
    ),
    *(
        f"""INSERT INTO series (run_id, series_id, attempt, observable, scope, points, first_step, last_step)
            VALUES (1, {number + 1}, {number}, 'loss', '', {5 - first}, {first}, 4)"""
        for number, first in ((0, 0), (1, 3))
    ),
    *(
        f"INSERT INTO point (run_id, series_id, step, value, status) VALUES (1, {number + 1}, {step}, {number}.5, 0)"
        for number, first in ((0, 0), (1, 3))
        for step in range(first, 5)
    ),
]


@pytest.fixture
def first_light(empty_url):
    """A database at revision 0001, with a run in it."""
    return past(empty_url, "0001")


def past(url, revision):
    database = Database(parse(url))
    with database.writing() as connection:
        command.upgrade(migrate._config(connection), "0001")
        for statement in AT_0001:
            connection.exec_driver_sql(statement)
        command.upgrade(migrate._config(connection), revision)
    database.close()
    return url


def test_a_database_of_revision_0001_goes_on_with_its_runs(first_light, engine, writer, rows):
    if engine == "postgresql":
        with pytest.raises(NeedsUpgrade, match="revision 0001"):
            Store.open(first_light)
        assert upgrade(first_light) == "0001"
    with Store.open(first_light) as store:
        assert migrate.differences(store.database) == []
        assert store.observations(RUN, "loss")["value"] == [0.5, 0.5, 0.5, 1.5, 1.5]
        # The next attempt is of a client that says who it is; its checkpoint, of one that did not, does not.
        third = writer(RunInfo(RUN, "new", 1.0), attempt=2, start_step=4, lineage=Lineage(id="a" * 32, begun=9.0))
        store.ingest(third.batch(third.frame(4, loss=2.5)))
        assert store.observations(RUN, "loss")["value"] == [0.5, 0.5, 0.5, 1.5, 2.5]
        assert store.run(RUN).name == "new"
        assert rows(store, "SELECT attempt, count(*) FROM measurements GROUP BY attempt ORDER BY attempt") == [
            (0, 5),
            (1, 2),
            (2, 1),
        ]


def test_runs_of_a_database_of_revision_0002_can_be_asked_to_measure(empty_url, engine, writer):
    url = past(empty_url, "0002")
    if engine == "postgresql":
        assert upgrade(url) == "0002"
    with Store.open(url) as store:
        assert migrate.differences(store.database) == []
        newest = writer(RunInfo(RUN, "old", 1.0), attempt=1, start_step=3)
        assert store.ingest(newest.batch(heartbeat=True)).asked == 0
        assert store.ask(RUN) == Asked(1, waited=False)
        assert store.ingest(newest.batch(newest.frame(5, loss=0.5))).asked == 1
