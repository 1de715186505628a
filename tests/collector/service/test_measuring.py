"""`POST /v1/runs/{run_id}/measure`: asked by a reader, told to the trainer, refused where nobody would answer."""

import time

import httpx
import msgspec
import pytest

from learnmech import wire
from learnmech.collector.store import requests

LISTENS = {"on_demand": True}


@pytest.fixture(scope="module")
def guarded(serve_module, token):
    return serve_module(token=token)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    """A second request a moment after the first is one of its own."""
    monkeypatch.setattr(requests, "PAUSE", 0.0)


def measure(running, batch, **more):
    return running.http.post(f"/v1/runs/{batch.run.id}/measure", **more)


def beat(batch):
    return msgspec.structs.replace(batch, frames=[], heartbeat=True, sent=time.time())


def test_the_trainer_hears_of_it_in_its_next_answer(guarded, batch, run_info):
    sent = batch(run=run_info(context=LISTENS))
    first = guarded.post(sent)
    assert "asked" not in first.json(), "an acknowledgement without a request is what it always was"
    answer = measure(guarded, sent)
    assert (answer.status_code, answer.json()) == (200, {"asked": 1, "waited": False})
    again = measure(guarded, sent)
    assert (again.status_code, again.json()) == (200, {"asked": 1, "waited": True})
    assert wire.decode(guarded.post(beat(sent)).content, wire.Ack, "json").asked == 1
    assert measure(guarded, sent).json() == {"asked": 2, "waited": False}
    events = guarded.http.get(f"/v1/runs/{sent.run.id}/events").json()["events"]
    assert [(event["kind"], event["step"]) for event in events] == [("measure_requested", 2)] * 2


@pytest.mark.parametrize("header", [None, "Bearer wrong-wrong-wrong-wrong"])
def test_it_needs_the_token(guarded, batch, run_info, header):
    sent = batch(run=run_info(context=LISTENS))
    guarded.post(sent)
    url = f"{guarded.service.url}/v1/runs/{sent.run.id}/measure"
    answer = httpx.post(url, headers={"Authorization": header} if header else None, trust_env=False)
    assert answer.status_code == 401
    assert guarded.store.events(sent.run.id) == []


def test_without_a_token_only_a_local_name_may_ask(shared, batch, run_info):
    sent = batch(run=run_info(context=LISTENS))
    shared.post(sent)
    assert measure(shared, sent, headers={"Host": "evil.example"}).status_code == 403
    assert shared.store.events(sent.run.id) == []
    assert measure(shared, sent).status_code == 200


def test_nobody_would_answer(shared, batch, run_info, frame):
    unknown = batch()
    assert measure(shared, unknown).status_code == 404
    assert shared.http.post("/v1/runs/nonsense/measure").status_code == 422
    deaf = batch()
    shared.post(deaf)
    answer = measure(shared, deaf)
    assert answer.status_code == 409
    assert "no probe of run 'a run' measures on demand" in answer.json()["error"]
    assert "on_demand()" in answer.json()["hint"]
    ended = batch([frame(0, events=[wire.Event("run_finished", 0, time.time())])], run=run_info(context=LISTENS))
    shared.post(ended)
    answer = measure(shared, ended)
    assert answer.status_code == 409
    assert "is finished" in answer.json()["error"]
    stalled = batch(run=run_info(context=LISTENS))
    shared.store.ingest(stalled, received=time.time() - 3600)
    answer = measure(shared, stalled)
    assert answer.status_code == 409
    assert "is stalled" in answer.json()["error"]
    assert "ask again once it goes on" in answer.json()["hint"]
    for run in (deaf, ended, stalled):
        assert all(event.kind != "measure_requested" for event in shared.store.events(run.run.id))
    assert shared.http.get(f"/v1/runs/{deaf.run.id}/measure").status_code == 405
