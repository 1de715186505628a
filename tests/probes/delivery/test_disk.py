"""Disks that are full, broken, read-only or gone: `put` never raises, order holds, and what is lost is told."""

import errno
import logging
import os
import shutil
import time
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learnmech.probes.delivery import spool as spool_module
from learnmech.probes.delivery.notices import Notices
from learnmech.probes.delivery.quarantine import Quarantine
from learnmech.probes.delivery.sources import OwnSource
from learnmech.probes.delivery.spool import Spool
from learnmech.sinks import Unavailable
from learnmech.wire import Measurement, RunInfo
from learnmech.wire.disk import Disk
from learnmech.wire.segments import SegmentHeader
from learnmech.wire.spool import batches


class Faulty(Disk):
    """A disk whose calls fail as `fault` says."""

    def __init__(self, fault: str = "") -> None:
        self.fault = fault

    def _maybe(self, *faults: str) -> None:
        if self.fault in faults:
            number = {"full": errno.ENOSPC, "short": errno.ENOSPC, "readonly": errno.EROFS}.get(self.fault, errno.EIO)
            raise OSError(number, os.strerror(number))

    def make_folder(self, path):
        self._maybe("readonly", "gone")
        super().make_folder(path)

    def create(self, path):
        self._maybe("readonly", "gone", "create")
        return super().create(path)

    def open(self, path):
        self._maybe("gone")
        return super().open(path)

    def write(self, fd, data):
        self._maybe("full", "io")
        if self.fault in {"short", "torn"}:
            return super().write(fd, data[: len(data) // 2])
        return super().write(fd, data)

    def truncate(self, fd, size):
        self._maybe("torn")
        super().truncate(fd, size)

    def read(self, fd, size, offset):
        self._maybe("unreadable")
        return super().read(fd, size, offset)

    def sync(self, fd):
        self._maybe("sync", "io")
        super().sync(fd)

    def remove(self, path):
        self._maybe("readonly", "gone")
        super().remove(path)


FAULTS = ["full", "short", "torn", "io", "readonly", "gone", "create", "sync"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_disk_that_fails_from_the_start_costs_one_warning(outbox, store, caplog, fault):
    box = outbox(disk=Faulty(fault))
    for step in range(20):
        box.put(step, [Measurement("loss", 1.0)])
    assert box.flush(20)
    box.close()
    assert store.steps == list(range(20))
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    # A disk that only fails to sync is noticed when it is synced.
    assert len(warnings) == 1 or (fault == "sync" and not warnings)
    assert all("spool" in record.message for record in warnings)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_disk_that_fails_for_a_while_leaves_no_hole(outbox, store, fault, monkeypatch):
    monkeypatch.setattr(spool_module, "_RETRY_FIRST", 0.01)
    monkeypatch.setattr(spool_module, "_RETRY_LAST", 0.01)
    disk = Faulty()
    box = outbox(disk=disk, max_age=0.02)
    for step in range(60):
        disk.fault = fault if 20 <= step < 40 else ""
        box.put(step, [Measurement("loss", 1.0)])
        time.sleep(0.003)
    assert box.flush(20)
    box.close()
    (writer,) = store.order
    assert store.order[writer] == list(range(60))
    assert box.report().in_memory == 0


def test_memory_is_written_back_when_the_disk_is_well_again(outbox, store, spool, monkeypatch, quick):
    monkeypatch.setattr(spool_module, "_RETRY_FIRST", 0.01)
    store.plan = lambda delivery, batch: (_ for _ in ()).throw(Unavailable("down"))
    disk = Faulty("full")
    box = outbox(disk=disk)
    for step in range(500):
        box.put(step, [Measurement("loss", 1.0)])
    assert box.report().in_memory > 0
    deadline = time.monotonic() + 20
    while not store.deliveries and time.monotonic() < deadline:
        time.sleep(0.01)
    disk.fault = ""
    while box.report().in_memory and time.monotonic() < deadline:
        time.sleep(0.01)
    box.put(500)
    in_flight = {frame.step for frame in store.deliveries[0].frames}
    on_disk = [frame.step for batch in batches(spool) for frame in batch.frames]
    assert on_disk == sorted(set(range(501)) - in_flight)
    box.close(0.0)
    # The batch that was on its way is written too: its place in the order is its sequence, not its file.
    after = sorted(frame.step for batch in batches(spool) for frame in batch.frames)
    assert after == list(range(501))


def test_memory_is_bounded_and_what_is_lost_is_told(outbox, store, quick, monkeypatch):
    monkeypatch.setattr(spool_module, "MEMORY_BYTES", 20_000)
    store.plan = lambda delivery, batch: (_ for _ in ()).throw(Unavailable("down"))
    box = outbox(disk=Faulty("full"))
    for step in range(2000):
        box.put(step, [Measurement("loss", 1.0)])
        assert box.report().in_memory <= 20_000
    store.plan = lambda delivery, batch: None
    assert box.flush(20)
    box.close()
    (writer,) = store.order
    arrived = store.order[writer]
    assert arrived == sorted(arrived)
    gaps = [event.data for frame in store.frames.values() for event in frame.events if event.kind == "gap"]
    told = {n for gap in gaps for n in range(gap["first_sequence"], gap["last_sequence"] + 1)}
    assert told.isdisjoint(arrived)
    assert told | set(arrived) == set(range(max(arrived) + 1))
    assert len(told) > 1000


def test_a_folder_removed_during_training_is_made_anew(outbox, store, spool, quick, monkeypatch, caplog):
    monkeypatch.setattr("learnmech.probes.delivery.courier.SYNC", 0.02)
    store.plan = lambda delivery, batch: (_ for _ in ()).throw(Unavailable("down"))
    box = outbox()
    box.put(0)
    time.sleep(0.05)
    shutil.rmtree(spool)
    deadline = time.monotonic() + 20
    step = 0
    while not list(spool.glob("*/*/*.seg")) and time.monotonic() < deadline:
        step += 1
        box.put(step)
        time.sleep(0.02)
    assert len(list(spool.glob("*/*/*.seg"))) == 1
    store.plan = lambda delivery, batch: None
    assert box.flush(20)
    # The file that had no name any more was read through its descriptor.
    assert store.steps == list(range(step + 1))
    assert any("was removed during training" in record.message for record in caplog.records)


def test_segments_removed_before_they_were_sent_are_told(outbox, store, spool, quick, monkeypatch):
    monkeypatch.setattr("learnmech.probes.delivery.courier.SYNC", 0.02)
    store.plan = lambda delivery, batch: (_ for _ in ()).throw(Unavailable("down"))
    box = outbox(max_age=0.0)
    for step in range(10):
        box.put(step)
    # Descriptors of closed segments are given back when they are synced; after that only the names lead to them.
    time.sleep(0.3)
    for path in sorted(spool.glob("*/*/*.seg"))[3:6]:
        path.unlink()
    store.plan = lambda delivery, batch: None
    assert box.flush(20)
    box.put(10)
    box.close()
    assert sorted(set(range(11)) - set(store.steps)) == [3, 4, 5]
    gaps = [event.data for frame in store.frames.values() for event in frame.events if event.kind == "gap"]
    assert [(gap["first_sequence"], gap["last_sequence"]) for gap in gaps] == [(3, 5)]


def test_a_damaged_frame_is_told_and_its_segment_kept(outbox, store, spool, quick, monkeypatch):
    monkeypatch.setattr("learnmech.wire.segments._CHUNK", 64)  # no reading ahead of the damage
    store.plan = lambda delivery, batch: (_ for _ in ()).throw(Unavailable("down"))
    box = outbox()
    for step in range(40):
        box.put(step, [Measurement("loss", float(step)) for _ in range(100)])
    time.sleep(0.05)
    (path,) = spool.glob("*/*/*.seg")
    data = bytearray(path.read_bytes())
    data[int(len(data) * 0.75)] ^= 0xFF
    with path.open("r+b") as file:
        file.write(data)
    store.plan = lambda delivery, batch: None
    assert box.flush(20)
    box.put(40)
    box.close()
    (lost,) = set(range(41)) - set(store.steps)
    assert 25 < lost < 35
    gaps = [event.data for frame in store.frames.values() for event in frame.events if event.kind == "gap"]
    assert [(gap["first_sequence"], gap["last_sequence"]) for gap in gaps] == [(lost, lost)]
    assert len(list(spool.glob("*/*/rejected/*.damaged"))) == 1


def test_a_folder_that_cannot_be_written(outbox, store, tmp_path, caplog):
    (tmp_path / "file").write_text("not a folder")
    box = outbox(spool=tmp_path / "file" / "spool")
    for step in range(3):
        box.put(step)
    assert box.flush(20)
    assert store.steps == [0, 1, 2]
    assert sum("LEARNMECH_SPOOL" in record.message for record in caplog.records) == 1


actions = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(1, 8)),
        st.tuples(st.just("deliver"), st.integers(1, 3)),
        st.tuples(st.just("fault"), st.sampled_from([*FAULTS, "unreadable", ""])),
        st.tuples(st.just("house"), st.just(0)),
        st.tuples(st.just("mend"), st.just(0)),
    ),
    max_size=60,
)


class Model:
    """A spool driven by hand, and the list that it has to equal: what is put is delivered, or part of a gap."""

    def __init__(self, folder, limit):
        self.disk = Faulty()
        notices = Notices()
        header = SegmentHeader(run=RunInfo(uuid.uuid4().hex, "r", 1.0), writer=uuid.uuid4().hex)
        self.spool = Spool(folder, header, notices, limit_bytes=limit, disk=self.disk)
        quarantine = Quarantine(self.spool.folder, notices, disk=self.disk)
        self.source = OwnSource(self.spool, notices, quarantine, self.disk)
        self.puts, self.arrived, self.told = 0, [], set()

    def put(self, count):
        for _ in range(count):
            self.spool.put(self.puts, [Measurement("loss", 1.0, scope="s" * 60)] * 3, (), None, None)
            self.puts += 1

    def deliver(self, count):
        for _ in range(count):
            batch = self.source.batch()
            if batch is None:
                return
            assert self.source.batch() is batch
            for frame in batch.frames:
                self.arrived.append(frame.sequence)
                for event in frame.events:
                    self.told.update(range(event.data["first_sequence"], event.data["last_sequence"] + 1))
            self.source.settle()

    def fault(self, fault):
        self.disk.fault = fault

    def house(self, _):
        self.spool.keep_house()

    def mend(self, _):
        self.spool.mend(now=True)


@given(actions, st.sampled_from([None, 4_000, 40_000]))
@settings(max_examples=120, deadline=None)
def test_every_frame_arrives_once_in_order_or_is_told_to_be_missing(tmp_path_factory, script, limit):
    model = Model(tmp_path_factory.mktemp("spool"), limit)
    for action, argument in script:
        getattr(model, action)(argument)
    model.fault("")
    model.mend(None)
    for _ in range(2):  # the second time for gaps that were found while delivering
        model.put(1)
        model.deliver(10**6)
    assert model.arrived == sorted(set(model.arrived))
    assert model.told.isdisjoint(model.arrived)
    assert model.told | set(model.arrived) == set(range(model.puts))
    assert len(model.told) == model.spool.gaps.frames
    model.spool.seal()
    assert model.source.batch() is None
    model.source.stop()
    model.spool.finish()
    assert not list(model.spool.folder.glob("*.seg"))
