"""Liveness says that the process lives; readiness tells the truth about the database."""

import threading

from learnmech.collector.service.readiness import Readiness
from learnmech.collector.store.errors import Unavailable


def test_both_are_well_with_a_database(running):
    assert running.http.get("/healthz").json()["status"] == "ok"
    answer = running.http.get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready"})


def test_readiness_goes_when_the_database_file_disappears(running, batch, tmp_path):
    """SQLite goes on writing into a deleted file as if nothing were: nothing may be acknowledged then."""
    running.post(batch())
    for file in tmp_path.glob("service.db*"):
        file.unlink()
    answer = running.http.get("/readyz")
    assert answer.status_code == 503
    assert set(answer.json()) == {"error", "expected", "hint"}
    assert "service.db" in answer.json()["error"]
    assert running.http.get("/healthz").status_code == 200, "a restart would not help"


def test_nothing_is_acknowledged_without_the_write_ahead_log(running, batch, tmp_path):
    """It holds the newest commits: whoever deletes it while we run takes them away."""
    assert running.post(batch()).status_code == 200
    (tmp_path / "service.db-wal").unlink()
    for answer in (running.post(batch()), running.http.get("/readyz")):
        assert answer.status_code == 503
        assert "service.db-wal" in answer.json()["error"]


def test_a_database_that_is_away_is_a_503_everywhere_and_comes_back(running, batch, monkeypatch):
    def away(*_: object, **__: object) -> None:
        raise Unavailable("sqlite:///service.db: gone")

    with monkeypatch.context() as patch:
        for name in ("ingest", "runs", "run", "revision"):
            patch.setattr(running.store, name, away)
        for answer in (
            running.post(batch()),
            running.http.get("/v1/runs"),
            running.http.get("/v1/runs/0123456789abcdef0123456789abcdef"),
            running.http.get("/v1/stream"),
        ):
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) > 0
            assert set(answer.json()) == {"error", "expected", "hint"}
        assert running.http.get("/healthz").status_code == 200
    assert running.http.get("/readyz").status_code == 200
    assert running.post(batch()).status_code == 200


def test_a_database_that_hangs_is_not_ready(running, monkeypatch):
    released = threading.Event()
    monkeypatch.setattr("learnmech.collector.service.health._PATIENCE", 0.2)
    monkeypatch.setattr(Readiness, "check", lambda _: released.wait(20))
    try:
        for _ in range(4):  # more than there are threads for it
            answer = running.http.get("/readyz")
            assert answer.status_code == 503
            assert "within 0.2 s" in answer.json()["error"]
        assert running.http.get("/healthz").status_code == 200
    finally:
        released.set()


def test_strangers_are_not_told_where_the_database_lives(store, serve, token, tmp_path):
    running = serve(store, token=token)
    for file in tmp_path.glob("service.db*"):
        file.unlink()
    answer = running.http.get("/readyz", headers={"Authorization": ""})
    assert answer.status_code == 503
    assert "service.db" not in answer.text
