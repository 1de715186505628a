"""The same service over PostgreSQL: what differs is that the database can go away and come back by itself."""

import pytest
import sqlalchemy as sa

from learnmech import wire
from learnmech.collector.store import Store

pytestmark = pytest.mark.postgres


@pytest.fixture
def url(postgres):
    made = postgres.learnmech()
    yield made
    postgres.drop(made)


@pytest.fixture
def store(url):
    with Store.open(url) as opened:
        yield opened


def test_a_round_trip(running, batch):
    sent = batch()
    assert running.post(sent).json()["accepted"] == 3
    assert running.post(sent).json()["duplicates"] == 3
    assert running.values(sent.run.id) == [0.0, 1.0, 2.0]
    assert running.http.get("/readyz").status_code == 200
    detail = running.http.get(f"/v1/runs/{sent.run.id}").json()
    assert (detail["status"], detail["points"]) == ("running", 3)


def test_a_database_that_goes_and_comes_back(running, postgres, url, batch, frame, eventually):
    """Every connection is cut and new ones are refused; the client keeps its batch and comes back."""
    first = batch()
    running.post(first)
    name = sa.make_url(url).database
    postgres._admin.execute(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false")
    postgres._admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
    second = batch([frame(n) for n in range(3, 6)], run=first.run, writer=first.writer)
    for answer in (running.post(second), running.http.get("/readyz"), running.http.get("/v1/runs")):
        assert answer.status_code == 503
        assert set(answer.json()) == {"error", "expected", "hint"}
        assert "retry-after" in answer.headers
    assert running.http.get("/healthz").status_code == 200
    assert running.http.get("/metrics").status_code == 200
    postgres._admin.execute(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true")
    assert running.post(second).json()["accepted"] == 3
    assert running.http.get("/readyz").status_code == 200
    assert running.values(first.run.id) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_text_that_postgresql_cannot_hold_costs_nothing(running, batch, frame):
    sent = batch([frame(0, wire.Measurement("loss", 1.0, reason="a\0b", method="x\0y"))])
    answer = running.post(sent)
    assert (answer.status_code, answer.json()["accepted"]) == (200, 1)
