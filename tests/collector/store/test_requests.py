"""A request to measure now: it waits in the store, whoever took it, until the answer to a batch of that attempt."""

import threading

import pytest
import sqlalchemy as sa

from learnmech.collector.store import Asked, Store, UnknownRun, requests
from learnmech.wire import Event


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    """Requests that follow one another at once are still requests of their own, but where a test says otherwise."""
    monkeypatch.setattr(requests, "PAUSE", 0.0)


def test_requests_within_seconds_are_one(store, writer, rows, monkeypatch):
    monkeypatch.setattr(requests, "PAUSE", 5.0)
    someone = writer()
    store.ingest(someone.batch(someone.frame(3, loss=1.0)))
    assert store.ask(someone.run.id, now=100.0) == Asked(1, waited=False)
    assert store.ingest(someone.batch(heartbeat=True)).asked == 1
    assert store.ask(someone.run.id, now=104.9) == Asked(1, waited=True)
    assert len(events(rows, store)) == 1
    assert store.ask(someone.run.id, now=105.1) == Asked(2, waited=False)
    second = writer(someone.run, attempt=1, start_step=2)
    store.ingest(second.batch(second.frame(2, loss=1.0)))
    assert store.ask(someone.run.id, now=105.2) == Asked(3, waited=False), "of another attempt"


def events(rows, store):
    return rows(store, "SELECT event_id, attempt, step, kind, severity FROM events ORDER BY event_id")


def test_an_answer_carries_the_request_and_says_it_again(store, writer):
    someone = writer()
    assert store.ingest(someone.batch(someone.frame(3, loss=1.0))).asked == 0
    assert store.ask(someone.run.id) == Asked(1, waited=False)
    assert store.ingest(someone.batch(someone.frame(4, loss=1.0))).asked == 1
    assert store.ingest(someone.batch(heartbeat=True)).asked == 1, "an answer may have been lost"
    assert store.ask(someone.run.id) == Asked(2, waited=False)
    assert store.ingest(someone.batch(heartbeat=True)).asked == 2


def test_asking_while_a_request_waits_changes_nothing(store, writer, rows):
    someone = writer()
    began = Event("run_started", 3, 1.0)
    store.ingest(someone.batch(someone.frame(3, loss=1.0, events=(began,))))
    store.ask(someone.run.id)
    before = store.revision()
    assert store.ask(someone.run.id) == Asked(1, waited=True)
    assert store.revision() == before
    asked = (2, 0, 3, "measure_requested", "info")
    assert events(rows, store) == [(1, 0, 3, "run_started", "info"), asked]
    assert store.events(someone.run.id)[-1].data == {"request": 1}
    store.ingest(someone.batch(heartbeat=True))
    store.ask(someone.run.id)
    assert events(rows, store)[2:] == [(3, 0, 3, "measure_requested", "info")]


def test_a_request_is_seen_by_those_who_watch(store, writer):
    someone = writer()
    store.ingest(someone.batch(heartbeat=True))
    before = store.revision()
    store.ask(someone.run.id)
    assert store.revision() == before + 1
    assert store.run(someone.run.id).status == "running"


def test_the_next_attempt_hears_its_own_requests_only(store, writer):
    first = writer()
    store.ingest(first.batch(first.frame(3, loss=1.0)))
    store.ask(first.run.id)
    second = writer(first.run, attempt=1, start_step=2)
    assert store.ingest(second.batch(second.frame(2, loss=1.0))).asked == 0, "asked of an attempt that is gone"
    assert store.ask(first.run.id) == Asked(2, waited=False), "the one that waits is for nobody"
    late = store.ingest(first.batch(first.frame(4, loss=1.0)))
    assert late.asked == 0, "what the first attempt left behind must not take the second one's request"
    assert store.ask(first.run.id) == Asked(2, waited=True)
    assert store.ingest(second.batch(heartbeat=True)).asked == 2


def test_one_run_does_not_hear_the_requests_of_another(store, writer):
    someone, other = writer(), writer()
    for each in (someone, other):
        store.ingest(each.batch(each.frame(0, loss=1.0)))
    store.ask(someone.run.id)
    assert store.ingest(other.batch(heartbeat=True)).asked == 0
    with pytest.raises(UnknownRun):
        store.ask("0" * 32)


def test_several_collectors_share_the_requests(url, writer, rows):
    """Two stores on one database, each with a cache of its own; ten readers ask at once."""
    someone = writer()
    with Store.open(url) as one, Store.open(url) as two:
        one.ingest(someone.batch(someone.frame(0, loss=1.0)))
        got = []
        readers = [
            threading.Thread(target=lambda store=store: got.append(store.ask(someone.run.id)))
            for store in [one, two] * 5
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        assert sorted(got, key=lambda asked: asked.waited) == [Asked(1, waited=False)] + [Asked(1, waited=True)] * 9
        assert two.ingest(someone.batch(heartbeat=True)).asked == 1
        assert one.ask(someone.run.id) == Asked(2, waited=False)
        assert two.ingest(someone.batch(heartbeat=True)).asked == 2
        assert len(events(rows, one)) == 2


def test_a_batch_costs_no_query_more(store, writer):
    """Before the first request, and after it was told: only the answer that tells it first writes that down."""
    counted = []
    sa.event.listen(store.database._writer, "before_cursor_execute", lambda *call: counted.append(call[2]))
    someone = writer()

    def queries(step):
        counted.clear()
        store.ingest(someone.batch(someone.frame(step, loss=1.0)))
        return len(counted)

    queries(0)  # makes run, attempt, writer and series
    usual = queries(1)
    store.ask(someone.run.id)
    assert queries(2) == usual + 1
    assert queries(3) == usual
