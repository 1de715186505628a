"""The outbox as the training loop sees it: cheap, silent, never in the way."""

import copy
import logging
import pickle
import random
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from learnmech.probes.delivery import Outbox
from learnmech.sinks import SinkMissing, Unavailable
from learnmech.wire import Event, Lineage, Measurement, RunInfo
from learnmech.wire.spool import batches


def test_what_is_put_arrives_whole_and_in_order(outbox, store, run, values):
    box = outbox(attempt=3, start_step=7, rank=2)
    for step in range(100):
        box.put(step, values, [Event("user", step, 1.0, "hello")], samples=8 * step, tokens=16 * step)
    assert box.flush(20)
    box.close()
    (writer,) = store.order
    assert store.order[writer] == list(range(100))
    frame = store.frames[run.id, writer, 42]
    assert frame.measurements == values
    assert frame.events == [Event("user", 42, 1.0, "hello")]
    assert (frame.step, frame.samples, frame.tokens) == (42, 336, 672)
    batch = store.deliveries[0]
    assert (batch.run, batch.attempt, batch.start_step, batch.rank) == (run, 3, 7, 2)
    assert all(sum(len(frame.measurements) for frame in batch.frames) <= 1000 for batch in store.deliveries)
    assert store.closed == 1
    report = box.report()
    assert (report.written, report.delivered, report.on_disk, report.in_memory, report.lost) == (100, 100, 0, 0, 0)


def test_nothing_is_left_on_disk_after_everything_was_delivered(outbox, spool):
    box = outbox()
    box.put(0, [Measurement("loss", 1.0)])
    assert len(list(spool.glob("*/*/*.seg"))) == 1
    box.close()
    assert list(spool.iterdir()) == []


def test_a_live_run_is_seen_while_it_runs(outbox, store):
    box = outbox()
    box.start()
    for step in range(3):
        began = time.monotonic()
        box.put(step, [Measurement("loss", 1.0)])
        store.wait(step + 1)
        # 0.25 s between looks; the rest is for a busy machine, and a thread that nobody wakes would take for ever.
        assert time.monotonic() - began < 5


def test_the_constructor_opens_nothing(run, tmp_path):
    before = set(tmp_path.iterdir())
    box = Outbox(run, sink="no such thing")
    box.close()
    box.put(0)
    assert set(tmp_path.iterdir()) == before


def test_an_unknown_sink_is_said_once_and_everything_stays_in_the_spool(run, caplog, spool):
    def missing(url):
        raise SinkMissing("the sink needs the collector extra: pip install 'learnmech[collector]'")

    box = Outbox(run, sink="sqlite:///learnmech.db", open_sink=missing)
    for step in range(5):
        box.put(step, [Measurement("loss", float(step))])
    began = time.monotonic()
    assert not box.flush(60)
    assert time.monotonic() - began < 30  # nobody waits for what only a person can mend
    box.close()
    warnings = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "pip install 'learnmech[collector]'" in warnings[0]
    assert "learnmech collect --ingest" in warnings[0]
    (batch,) = batches(spool)
    assert [frame.step for frame in batch.frames] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "url", ["nonsense", "http://", "nosuch://x", "http://h:notaport", "spool:", "localhost:8765", ""]
)
def test_a_malformed_sink_never_stops_training(run, caplog, spool, url):
    box = Outbox(run, sink=url)
    box.put(1, [Measurement("loss", 1.0)])
    box.flush(20)
    box.close()
    warnings = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "expected" in warnings[0]
    assert [frame.step for batch in batches(spool) for frame in batch.frames] == [1]


def test_a_sink_that_opens_late_gets_everything(outbox, store, quick):
    attempts = []

    def late(url):
        attempts.append(url)
        if len(attempts) < 4:
            raise Unavailable("the database is starting")
        return store

    box = outbox(open_sink=late)
    box.put(0)
    store.wait(1)
    assert len(attempts) == 4


def test_after_close_nothing_is_taken_and_nothing_raised(outbox, store, caplog):
    box = outbox()
    box.put(0)
    box.close()
    box.put(1)
    box.put(2)
    box.close()
    assert box.flush(0.0)
    assert store.steps == [0]
    assert sum("after the recorder was closed" in record.message for record in caplog.records) == 1


def test_copies_and_pickles_write_under_names_of_their_own(outbox, store, run, values):
    lineage = Lineage(id="1" * 32, begun=5.0)
    box = Outbox(run, sink="spool:somewhere", rank=5, lineage=lineage)
    box.put(0, values)
    for other in (copy.deepcopy(box), pickle.loads(pickle.dumps(box))):
        other.put(1, values)
        other.close()
    box.close()
    found = list(batches(Path("somewhere")))
    assert len({batch.writer for batch in found}) == 3
    assert sorted(frame.step for batch in found for frame in batch.frames) == [0, 1, 1]
    assert {batch.rank for batch in found} == {5}
    assert [batch.lineage for batch in found] == [lineage] * 3


def test_two_writers_of_one_run_do_not_meet(outbox, store):
    one, two = outbox(rank=0), outbox(rank=1)
    for step in range(50):
        one.put(step, [Measurement("loss", 1.0)])
        two.put(step, [Measurement("loss", 2.0)])
    one.close()
    two.close()
    assert sorted(store.order.values()) == [list(range(50)), list(range(50))]
    assert len(store.order) == 2


def test_the_random_stream_of_the_training_is_not_moved(outbox, store):
    random.seed(7)
    np.random.seed(7)
    before, before_numpy = random.getstate(), np.random.get_state()[1].tolist()
    box = outbox()

    def fail_once(delivery, batch):
        if delivery == 1:
            raise Unavailable("once")

    store.plan = fail_once
    box.put(0)
    box.close()
    assert random.getstate() == before
    assert np.random.get_state()[1].tolist() == before_numpy


def test_warnings_are_written_by_the_thread_that_trains(outbox, store, quick, caplog):
    store.plan = lambda delivery, batch: (_ for _ in ()).throw(Unavailable("the collector is down"))
    box = outbox()
    box.put(0)
    box.flush(0.5)
    names = {record.threadName for record in caplog.records if record.name.startswith("learnmech")}
    assert names == {"MainThread"}
    assert sum("the collector is down" in record.message for record in caplog.records) == 1


def test_put_costs_microseconds(outbox, store, values, capsys):
    box = outbox()
    box.put(0, values)
    best = float("inf")
    for _ in range(5):
        began = time.thread_time()
        for step in range(200):
            box.put(step, values)
        best = min(best, (time.thread_time() - began) / 200)
    with capsys.disabled():
        print(f"\nput of {len(values)} measurements: {1e6 * best:.1f} µs of CPU in the training thread")
    assert best < 200e-6


def test_memory_does_not_grow_with_what_waits(outbox, store, values, quick):
    store.plan = lambda delivery, batch: (_ for _ in ()).throw(Unavailable("down"))
    store.deliveries = _Forgetful()
    box = outbox()
    for step in range(500):
        box.put(step, values)
    tracemalloc.start()
    for step in range(3000):
        box.put(step, values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert box.report().on_disk > 8_000_000
    # One batch in flight and a read buffer, not the 9 MB that wait.
    assert peak < 5_000_000


class _Forgetful(list):
    """Counts deliveries without keeping them."""

    def append(self, item):
        del item


def test_a_thread_that_cannot_start_leaves_the_spool_working(run, spool, monkeypatch, caplog):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", refuse)
    box = Outbox(run, sink="http://collector.test")
    box.put(4, [Measurement("loss", 1.0)])
    assert not box.flush(1.0)
    box.close()
    assert [frame.step for batch in batches(spool) for frame in batch.frames] == [4]
    assert any("can't start new thread" in record.message for record in caplog.records)


def test_the_environment_names_the_spool(run, monkeypatch, tmp_path):
    monkeypatch.setenv("LEARNMECH_SPOOL", str(tmp_path / "elsewhere"))
    box = Outbox(run, sink="nonsense")
    box.put(0)
    box.close()
    assert len(list(batches(tmp_path / "elsewhere"))) == 1


def test_a_spool_sink_keeps_everything_and_delivers_nothing(run, tmp_path, caplog):
    box = Outbox(RunInfo(run.id, "kept", 1.0), sink=f"spool:{tmp_path}/kept")
    for step in range(3):
        box.put(step, [Measurement("loss", 1.0)])
    assert box.flush(20)
    box.close()
    (batch,) = batches(tmp_path / "kept")
    assert [frame.step for frame in batch.frames] == [0, 1, 2]
    assert not caplog.records
