"""What may not grow without end, and how what is given up is told."""

import time

from learnmech.probes.delivery.backoff import Backoff
from learnmech.sinks import Refused, Unauthorized, Unavailable
from learnmech.wire import Measurement
from learnmech.wire.spool import batches


def test_a_wrong_token_is_not_hammered(outbox, store):
    store.plan = lambda delivery, batch: (_ for _ in ()).throw(Unauthorized("no"))
    box = outbox()
    box.put(0)
    assert not box.flush(10)
    tries = len(store.deliveries)
    time.sleep(0.7)
    assert len(store.deliveries) == tries


def test_close_does_not_wait_longer_than_it_may(outbox, store, spool):
    def plan(delivery, batch):
        time.sleep(3.0)
        raise Unavailable("late")

    store.plan = plan
    box = outbox()
    box.put(0)
    began = time.monotonic()
    box.close(0.3)
    assert time.monotonic() - began < 2.5
    assert [frame.step for batch in batches(spool) for frame in batch.frames] == [0]


def test_what_the_limit_drops_is_told(outbox, store, spool, caplog, quick):
    store.plan = lambda delivery, batch: (_ for _ in ()).throw(Unavailable("down"))
    limit = 400_000
    box = outbox(limit_bytes=limit)
    values = [Measurement("weight_norm", float(index), scope="s" * 20) for index in range(50)]
    for step in range(1000):
        box.put(step, values)
        if step % 100 == 0:
            assert sum(path.stat().st_size for path in spool.glob("*/*/*.seg")) <= limit
    assert sum("reached its limit" in record.message for record in caplog.records) == 1
    store.plan = lambda delivery, batch: None
    box.put(1000, values)
    assert box.flush(20)
    box.close()
    (writer,) = store.order
    assert store.order[writer] == sorted(store.order[writer])
    gaps = [event for frame in store.frames.values() for event in frame.events if event.kind == "gap"]
    told = {n for gap in gaps for n in range(gap.data["first_sequence"], gap.data["last_sequence"] + 1)}
    # Every frame either arrived or is told to be missing, and none both.
    assert told.isdisjoint(store.order[writer])
    assert told | set(store.order[writer]) == set(range(max(store.order[writer]) + 1))
    assert 300 < len(told) < 1000
    assert box.report().lost == len(told)
    assert gaps[0].severity == "warning"
    assert "the spool reached its limit" in gaps[0].message


def test_a_gap_at_the_very_end_is_told_by_close(outbox, store, quick):
    store.plan = lambda delivery, batch: (_ for _ in ()).throw(Unavailable("down"))
    box = outbox(limit_bytes=100_000)
    for step in range(300):
        box.put(step, [Measurement("loss", 1.0, scope="s" * 100) for _ in range(50)])
    assert box.report().lost > 0
    store.plan = lambda delivery, batch: None
    box.close(20)
    assert any(event.kind == "gap" for frame in store.frames.values() for event in frame.events)


def test_rejected_files_are_bounded_too(outbox, store, spool, quick):
    store.plan = lambda delivery, batch: (_ for _ in ()).throw(Refused("never"))
    box = outbox(limit_bytes=800_000)
    for step in range(600):
        box.put(step, [Measurement("weight_norm", 1.0, scope="s" * 20) for _ in range(50)])
        if step % 50 == 0:
            box.flush(20)
    box.close(20)
    (rejected,) = spool.glob("*/*/rejected")
    assert 10_000 < sum(path.stat().st_size for path in rejected.iterdir()) < 200_000


def test_backoff_grows_is_jittered_and_honours_the_server():
    backoff = Backoff()
    bounds = []
    for failure in range(12):
        waits = []
        for _ in range(300):
            backoff._failures = failure
            waits.append(backoff.failed())
        bounds.append(max(waits))
        assert min(waits) < 0.2 * max(waits) + Backoff.LEAST
    assert bounds == sorted(bounds) or bounds[-1] > 25
    assert 0.4 < bounds[0] <= 0.5
    assert 25 < bounds[-1] <= 30
    assert backoff.failed(retry_after=77.0) >= 77.0
    assert backoff.failed(retry_after=1e9) <= Backoff.AT_MOST_ASKED + 3.0
    assert backoff.failed(least=30.0) >= 30.0
    assert not backoff.due()
    backoff.succeeded()
    assert backoff.due()


def test_retry_after_is_honoured(outbox, store, quick):
    moments = []

    def plan(delivery, batch):
        moments.append(time.monotonic())
        if delivery == 1:
            raise Unavailable("busy", retry_after=0.5)

    store.plan = plan
    box = outbox()
    box.put(0)
    store.wait(1)
    assert moments[1] - moments[0] >= 0.5
