"""The judge behind the service: after the acknowledgement, of its own accord, and seen on the page's interface."""

import time

import pytest

from learnmech import wire
from learnmech.collector.service.behind import behind
from learnmech.collector.store import Store

ETA = 0.1


@pytest.fixture
def at_the_edge(batch, run_info, frame):
    """A full-batch gradient descent whose sharpness sits at 2/eta."""

    def make(steps: int = 12) -> wire.Batch:
        facts = {"learning_rate": ETA, "momentum": 0.0, "dampening": 0.0, "nesterov": 0.0, "weight_decay": 0.0}
        facts |= {"full_batch": 1.0, "deterministic_loss": 1.0}
        first = frame(0, *(wire.Measurement(name, value) for name, value in facts.items()))
        rest = [frame(n, wire.Measurement("sharpness", 2 / ETA, stderr=0.01)) for n in range(1, steps)]
        return batch([first, *rest], run=run_info("edge", context={"optimizer": "SGD"}))

    return make


def test_a_batch_is_judged_after_its_acknowledgement(running, at_the_edge, eventually):
    sent = at_the_edge()
    running.post(sent)

    def judged():
        return running.http.get(f"/v1/runs/{sent.run.id}").json()["laws"]

    (law,) = [row for row in eventually(judged) if row["law"] == "edge_of_stability"]
    assert law["verdict"] == "holds"
    assert law["predicted"] == pytest.approx(2 / ETA)
    assert law["changes"][-1] == [law["since_step"], "holds"]
    columns = running.http.get(f"/v1/runs/{sent.run.id}/residuals", params={"law": "edge_of_stability"}).json()
    names = {
        "step",
        "x",
        "time",
        "measured",
        "measured_stderr",
        "predicted",
        "lower",
        "upper",
        "ratio",
        "verdict",
        "reason",
    }
    assert set(columns) == names
    assert {len(column) for column in columns.values()} == {11}
    assert columns["ratio"][-1] == pytest.approx(1)
    lines = running.http.get("/metrics").text.splitlines()
    assert "learnmech_judged_rows_total 11.0" in lines
    assert "learnmech_judge_pending_runs 0.0" in lines


def test_what_was_stored_while_no_collector_ran_is_judged_at_its_start(store, serve, at_the_edge, eventually):
    sent = at_the_edge()
    store.ingest(sent)
    assert behind(store) == [sent.run.id]
    serve(store)
    eventually(lambda: not behind(store))
    assert [row.law for row in store.laws(sent.run.id)] == ["edge_of_stability"]


def test_what_another_process_stores_is_judged(running, at_the_edge, eventually):
    """A trainer with a SQL sink beside a collector on the same database."""
    sent = at_the_edge()
    with Store.open(running.store.url) as other:
        other.ingest(sent)
    eventually(lambda: running.store.laws(sent.run.id))


def test_stopping_judges_what_waits(store, serve, at_the_edge):
    running = serve(store)
    sent = [at_the_edge() for _ in range(5)]
    for one in sent:
        running.post(one)
    running.service.stop()
    assert not behind(store)
    assert all(store.laws(one.run.id) for one in sent)


def test_a_slow_judge_delays_no_acknowledgement(running, batch, monkeypatch):
    """The acknowledgement is what the trainer's spool waits for."""
    judge = running.service.state.judge
    monkeypatch.setattr(judge, "_judge", lambda _: time.sleep(0.5) or 0)
    running.post(batch())
    began = time.monotonic()
    for _ in range(10):
        assert running.post(batch()).status_code == 200
    assert time.monotonic() - began < 4, "ten passes of the judge take 5 s"
    monkeypatch.undo()
