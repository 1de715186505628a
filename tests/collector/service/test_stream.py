"""The stream of changes: told at once, resumed where it broke off, and no obstacle to a shutdown."""

import contextlib
import json
import threading
import time

import httpx
import pytest

from learnmech.collector.store import Store


class Events:
    """Reads Server-Sent Events as a browser does."""

    def __init__(self, response: httpx.Response) -> None:
        self.lines = response.iter_lines()

    def next(self) -> dict[str, object]:
        """The next event, comments and settings skipped."""
        fields: dict[str, str] = {}
        for line in self.lines:
            name, _, value = line.partition(": ")
            if line and name:
                fields[name] = value
            elif "data" in fields:
                return {"event": fields["event"], "id": int(fields["id"]), **json.loads(fields["data"])}
        raise EOFError

    def until(self, run: str, **expected: object) -> dict[str, object]:
        """The next event in which `run` is as expected."""
        while True:
            event = self.next()
            for entry in event["runs"]:
                if entry["id"] == run and all(entry[key] == value for key, value in expected.items()):
                    return event


@contextlib.contextmanager
def listening(running, **headers):
    query = headers.pop("query", "")
    with running.http.stream("GET", f"/v1/stream{query}", headers=headers, timeout=20) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        yield Events(response)


def test_the_first_event_lists_the_runs(shared, batch):
    sent = [batch(), batch()]
    for one in sent:
        shared.post(one)
    with listening(shared) as events:
        event = events.next()
        assert (event["event"], event["id"]) == ("runs", event["revision"])
        listed = {run["id"]: run for run in event["runs"]}
        for one in sent:
            told = listed[one.run.id]
            assert (told["status"], told["last_step"]) == ("running", 2)
            assert set(told) == {"id", "revision", "status", "last_step"}


def test_the_first_event_comes_without_any_run(running):
    with listening(running) as events:
        assert events.next()["runs"] == []


def test_a_batch_is_told_within_a_second(shared, batch, frame):
    waits = []
    with listening(shared) as events:
        events.next()
        for _ in range(5):
            sent = batch([frame(0)])
            began = time.monotonic()
            shared.post(sent)
            events.until(sent.run.id, last_step=0)
            waits.append(time.monotonic() - began)
    assert min(waits) < 1, "the quickest of five, so that a machine that stood still once does not count"


def test_a_write_by_another_process_is_told(store, serve, batch):
    """A trainer with a SQL sink writes to the same database; no request tells the collector."""
    running = serve(store, poll=0.05)
    sent = batch()
    with listening(running) as events:
        events.next()
        other = Store.open(str(store.url))
        other.ingest(sent)
        other.close()
        events.until(sent.run.id, last_step=2)


def test_only_what_changed_is_told(shared, batch, frame):
    quiet, busy = batch(), batch([frame(0)])
    shared.post(quiet)
    with listening(shared) as events:
        events.until(quiet.run.id)
        shared.post(busy)
        event = events.until(busy.run.id)
        assert [run["id"] for run in event["runs"]] == [busy.run.id]


def test_a_broken_stream_resumes_after_the_last_event(running, batch, eventually):
    before, missed = batch(), batch()
    running.post(before)
    eventually(lambda: "learnmech_judge_seconds_count 1.0" in running.http.get("/metrics").text)
    with listening(running) as events:
        seen = events.until(before.run.id)["id"]
    running.post(missed)
    with listening(running, **{"Last-Event-ID": str(seen)}) as events:
        event = events.next()
        assert [run["id"] for run in event["runs"]] == [missed.run.id]
        assert event["id"] > seen


@pytest.mark.parametrize("last", ["999999999", "not a number", "-1", ""])
def test_an_id_that_cannot_be_is_a_fresh_start(shared, batch, last):
    """The database was replaced, or the header is nonsense: the watcher is told of every run."""
    sent = batch()
    shared.post(sent)
    with listening(shared, **{"Last-Event-ID": last}) as events:
        assert sent.run.id in [run["id"] for run in events.next()["runs"]]


def test_a_stream_of_one_run_tells_of_no_other(shared, batch, frame):
    mine, other = batch([frame(0)]), batch()
    with listening(shared, query=f"?run={mine.run.id}") as events:
        events.next()
        shared.post(other)
        shared.post(mine)
        assert [run["id"] for run in events.until(mine.run.id)["runs"]] == [mine.run.id]


def test_silence_is_broken_by_comments(store, serve):
    running = serve(store, keep_alive=0.1)
    with running.http.stream("GET", "/v1/stream") as response:
        lines = response.iter_lines()
        assert next(line for line in lines if line.startswith(":")) == ": keep-alive"


def test_too_many_streams_are_a_sentence(store, serve, eventually):
    running = serve(store, stream_limit=1)
    with listening(running) as events:
        events.next()
        refused = running.http.get("/v1/stream")
        assert refused.status_code == 503
        assert set(refused.json()) == {"error", "expected", "hint"}

    def again() -> bool:
        with running.http.stream("GET", "/v1/stream") as response:
            return response.status_code == 200

    eventually(again)


def test_an_open_stream_does_not_hold_up_the_shutdown(store, serve):
    """A watcher would otherwise keep the server for the whole grace period."""
    running = serve(store, shutdown=60.0)
    opened, ended = threading.Event(), threading.Event()

    def watch() -> None:
        with httpx.stream("GET", f"{running.service.url}/v1/stream", timeout=60, trust_env=False) as response:
            for _ in response.iter_lines():
                opened.set()
        ended.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert opened.wait(20)
    began = time.monotonic()
    running.service.stop()
    assert time.monotonic() - began < 15, "far below the grace period of 60 s"
    watcher.join(20)
    assert ended.is_set(), "the stream ended cleanly, not by a cut connection"
