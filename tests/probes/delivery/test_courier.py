"""The background thread against sinks that fail in every way: nothing lost, nothing twice, nothing out of order."""

import json
import logging
import time
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from learnmech.probes.delivery import courier as courier_module
from learnmech.probes.delivery.backoff import Backoff
from learnmech.sinks import Refused, Unauthorized, Unavailable
from learnmech.wire import Ack, Event, Measurement, Rejection
from learnmech.wire.spool import batches


def boundaries(store) -> list[tuple[int, int]]:
    return [(batch.frames[0].sequence, batch.frames[-1].sequence) for batch in store.deliveries]


def warnings(caplog) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


@given(st.lists(st.sampled_from(["ok", "down", "lost ack", "bug"]), max_size=12), st.integers(1, 30))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_sink_does_every_frame_lands_once_and_in_order(outbox, store, run, quick, schedule, frames):
    store.__init__()
    sent = {}

    def plan(delivery, batch):
        # The same first frame always comes with the same last one: a retry is the same batch.
        first, last = batch.frames[0].sequence, batch.frames[-1].sequence
        assert sent.setdefault(first, last) == last
        what = schedule[delivery - 1] if delivery <= len(schedule) else "ok"
        if what == "down":
            raise Unavailable("down")
        if what == "bug":
            raise KeyError("a bug in the sink")

    def after(delivery, batch):
        if delivery <= len(schedule) and schedule[delivery - 1] == "lost ack":
            raise Unavailable("the answer was lost")

    store.plan, store.after = plan, after
    box = outbox()
    for step in range(frames):
        box.put(step, [Measurement("loss", float(index)) for index in range(200)])
    assert box.flush(30)
    box.close()
    assert store.steps == list(range(frames))
    (writer,) = store.order
    assert store.order[writer] == list(range(frames))
    assert box.report().lost == 0


def test_a_retry_is_the_same_batch_although_more_was_put(outbox, store, quick):
    failing = True

    def plan(delivery, batch):
        if failing:
            raise Unavailable("down")

    store.plan = plan
    box = outbox()
    box.put(0, [Measurement("loss", 1.0)])
    deadline = time.monotonic() + 20
    while len(store.deliveries) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    for step in range(1, 200):
        box.put(step, [Measurement("loss", 1.0)])
    while len(store.deliveries) < 5 and time.monotonic() < deadline:
        time.sleep(0.005)
    failing = False
    box.flush(20)
    tries = boundaries(store)
    assert len(tries) >= 6
    assert set(tries[:5]) == {tries[0]}
    assert store.steps == list(range(200))
    # The batch is the same, the time of sending is not: the collector computes clock offsets from it.
    assert store.deliveries[1].sent > store.deliveries[0].sent


def test_a_slow_sink_does_not_slow_put(outbox, store):
    def plan(delivery, batch):
        time.sleep(0.2)

    store.plan = plan
    box = outbox()
    box.put(0)
    began = time.thread_time()
    for step in range(1, 500):
        box.put(step)
    assert time.thread_time() - began < 0.5
    assert len(store.deliveries) < 100
    assert box.flush(20)
    assert store.steps == list(range(500))


def test_refused_frames_are_kept_with_the_reason_and_the_rest_goes_on(outbox, store, spool, caplog, quick):
    def plan(delivery, batch):
        if any(frame.step in {3, 4} for frame in batch.frames):
            raise Refused("scope must be text")

    store.plan = plan
    box = outbox()
    for step in range(6):
        box.put(step, [Measurement("loss", float(step)) for _ in range(600)])  # one frame, one batch
    assert box.flush(20)
    box.close()
    assert store.steps == [0, 1, 2, 5]
    (rejected,) = spool.glob("*/*/rejected")
    # The folder that was refused can be delivered by hand later, as it is.
    assert [frame.step for batch in batches(rejected) for frame in batch.frames] == [3, 4]
    reasons = [json.loads(line) for line in (rejected / "reasons.jsonl").read_text().splitlines()]
    assert [(line["refused"], line["reason"]) for line in reasons] == [
        ([3, 3], "scope must be text"),
        ([4, 4], "scope must be text"),
    ]
    (warning,) = warnings(caplog)
    assert "scope must be text" in warning
    assert str(rejected) in warning


def test_rejected_measurements_are_kept_with_their_values(outbox, store, spool, caplog):
    def rejected(batch):
        return [
            Rejection(frame.sequence, 1, "sharpnes", "unknown observable; did you mean sharpness?")
            for frame in batch.frames
        ]

    store.rejected = rejected
    box = outbox()
    for step in range(3):
        box.put(step, [Measurement("loss", 1.0), Measurement("sharpnes", float("inf"), stderr=0.5)])
    box.close()
    (reasons,) = spool.glob("*/*/rejected/reasons.jsonl")
    lines = [json.loads(line) for line in reasons.read_text().splitlines()]
    assert [line["sequence"] for line in lines] == [0, 1, 2]
    assert lines[0]["measurement"] == {"observable": "sharpnes", "value": "inf", "stderr": 0.5}
    assert len(warnings(caplog)) == 1
    assert "did you mean sharpness?" in warnings(caplog)[0]


def test_a_store_that_points_at_measurements_we_never_sent_does_no_harm(outbox, store):
    store.rejected = lambda batch: [Rejection(99, 7, "x", "?"), Rejection(0, -5, "y", "?")]
    box = outbox()
    box.put(0, [Measurement("loss", 1.0)])
    assert box.flush(20)


def test_a_wrong_token_is_said_loudly_once_and_loses_nothing(outbox, store, caplog, monkeypatch):
    monkeypatch.setattr(courier_module, "SLOW", 0.01)
    monkeypatch.setattr(courier_module, "TICK", 0.01)
    monkeypatch.setattr(Backoff, "FIRST", 0.001)
    allowed = False

    def plan(delivery, batch):
        if not allowed:
            raise Unauthorized("the token is wrong")

    store.plan = plan
    box = outbox()
    for step in range(5):
        box.put(step)
    began = time.monotonic()
    assert not box.flush(60)
    assert time.monotonic() - began < 30  # only a person can help: nobody waits for it
    deadline = time.monotonic() + 20
    while len(store.deliveries) < 6 and time.monotonic() < deadline:
        time.sleep(0.005)
    box.put(5)
    errors = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.levelname for record in errors] == ["ERROR"]
    assert "the token is wrong" in errors[0].message
    allowed = True
    store.wait(6)
    assert store.steps == [0, 1, 2, 3, 4, 5]


def test_an_outage_is_said_once_and_its_end_too(outbox, store, caplog, quick):
    caplog.set_level(logging.INFO)
    up = False

    def plan(delivery, batch):
        if not up:
            raise Unavailable("connection refused")

    store.plan = plan
    box = outbox()
    for step in range(5):
        box.put(step)
        time.sleep(0.03)
    up = True
    assert box.flush(20)
    assert sum("connection refused" in line for line in warnings(caplog)) == 1
    assert any("delivering to http://collector.test:8765 again" in record.message for record in caplog.records)


def test_no_secret_of_the_url_is_logged_or_stored(outbox, store, caplog, spool, quick):
    store.plan = lambda delivery, batch: (_ for _ in ()).throw(Unavailable("down"))
    box = outbox(sink="http://user:s3cr3t-token@collector.test:8765/?password=s3cr3t")
    box.put(0)
    box.flush(0.2)
    assert "s3cr3t" not in caplog.text
    (segment,) = spool.glob("*/*/*.seg")
    assert b"s3cr3t" not in segment.read_bytes()
    assert b"http://collector.test:8765" in segment.read_bytes()


def test_a_silent_run_says_that_it_is_alive(outbox, store, monkeypatch):
    monkeypatch.setattr(courier_module, "HEARTBEAT", 0.05)
    monkeypatch.setattr(courier_module, "TICK", 0.01)
    box = outbox(rank=4, attempt=1)
    box.put(0)
    deadline = time.monotonic() + 20
    while len(store.heartbeats) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(store.heartbeats) >= 3
    beat = store.heartbeats[0]
    assert (beat.heartbeat, beat.frames, beat.rank, beat.attempt) == (True, [], 4, 1)
    box.close()
    beats = len(store.heartbeats)
    time.sleep(0.15)
    assert len(store.heartbeats) == beats  # a run that ended is silent


def test_the_spool_survives_until_the_next_process(outbox, store, run, quick):
    store.plan = lambda delivery, batch: (_ for _ in ()).throw(Unavailable("down"))
    box = outbox()
    for step in range(10):
        box.put(step)
    box.close(0.05)
    assert store.frames == {}
    store.plan = lambda delivery, batch: None
    again = outbox(attempt=1)
    again.put(10)
    store.wait(11)
    assert sorted(store.steps) == list(range(11))
    assert len(store.order) == 2
    again.close()


def test_segments_are_deleted_only_when_their_last_frame_was_acknowledged(outbox, store, spool, quick):
    taken = 0

    def plan(delivery, batch):
        if delivery > 3:
            raise Unavailable("enough")

    store.plan = plan
    box = outbox(max_age=0.0)  # every frame begins a segment
    for step in range(8):
        box.put(step)
    box.flush(0.3)
    taken = len(store.frames)
    assert 1 <= taken < 8
    left = [frame.step for batch in batches(spool) for frame in batch.frames]
    assert left == list(range(taken, 8))
    store.plan = lambda delivery, batch: None
    assert box.flush(20)
    assert store.steps == list(range(8))


def test_an_event_of_the_user_arrives(outbox, store):
    box = outbox()
    box.put(3, events=[Event("run_started", 3, 1.0), Event("user", 3, 2.0, "x", "error", {"a": [1, None]})])
    box.close()
    (frame,) = store.frames.values()
    assert [event.kind for event in frame.events] == ["run_started", "user"]
    assert frame.events[1].data == {"a": [1, None]}


def test_an_acknowledgement_is_all_that_is_asked_of_a_sink(outbox, store):
    # A store may count as it likes; only its coming back means that the batch is safe.
    store.deliver = lambda batch: Ack(0, 0, [], 0, 0.0)
    box = outbox()
    box.put(0)
    assert box.flush(20)
    assert list(Path(".learnmech/spool").rglob("rejected")) == []
