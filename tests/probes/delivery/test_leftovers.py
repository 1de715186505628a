"""What dead processes left: found, taken once, delivered under its own name; what lives or belongs elsewhere stays."""

import json
import os
import socket
import time
import uuid

import pytest

from learnmech.probes.delivery import courier as courier_module
from learnmech.probes.delivery import leftovers
from learnmech.probes.delivery.lock import STALE, WriterLock
from learnmech.probes.delivery.notices import Notices
from learnmech.sinks import Unavailable
from learnmech.wire import Frame, Measurement, RunInfo, encode
from learnmech.wire.segments import SegmentHeader, SegmentWriter
from learnmech.wire.spool import segment_path

SINK = "http://collector.test:8765"


def leave(root, run, steps, *, sink=SINK, attempt=0, torn=b"", per_segment=2):
    """Write what a killed process leaves: segments, a lock that nobody holds, perhaps half a frame."""
    writer = uuid.uuid4().hex
    folder = root / run.id / writer
    folder.mkdir(parents=True)
    header = SegmentHeader(run=run, attempt=attempt, start_step=1, writer=writer, rank=6, sink=sink)
    for index in range(0, len(steps), per_segment):
        path = segment_path(folder, index)
        segment = SegmentWriter(path, header)
        for sequence in range(index, min(index + per_segment, len(steps))):
            segment.append(encode(Frame(sequence, steps[sequence], 1.0, measurements=[Measurement("loss", 1.0)])))
        segment.close()
    with path.open("ab") as file:
        file.write(torn)
    dead = {"host": socket.gethostname(), "pid": 2**22 + 5, "born": "1"}
    (folder / "lock").write_text(json.dumps(dead))
    return folder


def other(name="another run"):
    return RunInfo(uuid.uuid4().hex, name, 1.0)


def test_what_dead_processes_left_is_delivered_under_their_names(outbox, store, run, spool, quick):
    mine = leave(spool, run, [0, 1, 2, 3, 4], attempt=0, torn=b"\x40\0\0\0half a fr")
    theirs = leave(spool, other(), [7, 8, 9])
    box = outbox(attempt=1)
    box.put(5)
    store.wait(9)
    deadline = time.monotonic() + 20
    while (mine.exists() or theirs.parent.exists()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not mine.exists()
    assert not theirs.parent.exists()
    assert store.order[mine.name] == [0, 1, 2, 3, 4]
    assert store.order[theirs.name] == [0, 1, 2]
    batch = next(batch for batch in store.deliveries if batch.writer == mine.name)
    assert (batch.attempt, batch.start_step, batch.rank, batch.run) == (0, 1, 6, run)


@pytest.mark.parametrize("sink", ["http://elsewhere.test:8765", "spool:/somewhere", "sqlite:////other.db"])
def test_what_was_meant_for_another_sink_stays(outbox, store, spool, quick, sink):
    folder = leave(spool, other(), [0, 1], sink=sink)
    box = outbox()
    box.put(0)
    store.wait(1)
    box.close()
    assert len(store.frames) == 1
    assert len(list(folder.glob("*.seg"))) == 1


def test_an_earlier_attempt_follows_its_run_to_a_new_sink(outbox, store, run, spool, quick):
    leave(spool, run, [0, 1], sink="http://old.test:8765")
    outbox(attempt=1).put(2)
    store.wait(3)


def test_what_a_living_writer_holds_is_not_touched(outbox, store, run, spool, quick):
    folder = leave(spool, run, [0, 1])
    owner = WriterLock.adopt(folder / "lock")
    assert owner is not None
    box = outbox()
    box.put(5)
    store.wait(1)
    box.close()
    assert store.steps == [5]
    assert len(list(folder.glob("*.seg"))) == 1
    owner.release()


def test_a_lost_acknowledgement_of_the_dead_is_no_second_copy(outbox, store, run, spool, quick):
    folder = leave(spool, run, [0, 1, 2])
    header = SegmentHeader(run=run, writer=folder.name)
    # The dead process had delivered two of three.
    for sequence in (0, 1):
        store.frames[run.id, header.writer, sequence] = Frame(sequence, sequence, 1.0)
    box = outbox()
    box.put(9)
    store.wait(4)
    assert len(store.frames) == 4


def test_leftovers_are_given_back_when_the_process_ends_first(outbox, store, run, spool, quick):
    folder = leave(spool, run, list(range(10)), per_segment=1)

    def plan(delivery, batch):
        if batch.writer == folder.name and batch.frames[0].step >= 3:
            raise Unavailable("enough")

    store.plan = plan
    box = outbox()
    box.put(100)
    deadline = time.monotonic() + 20
    while len(store.frames) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    # A segment is removed with the look for the next batch, a moment after its acknowledgement.
    while len(list(folder.glob("*.seg"))) > 7 and time.monotonic() < deadline:
        time.sleep(0.01)
    box.close(0.1)
    assert len(list(folder.glob("*.seg"))) == 7
    store.plan = lambda delivery, batch: None
    again = outbox()
    again.put(101)
    store.wait(12)
    assert store.order[folder.name] == list(range(10))


def test_a_damaged_leftover_is_delivered_as_far_as_it_can_be_read_and_kept(outbox, store, run, spool, quick):
    folder = leave(spool, run, list(range(6)), per_segment=6)
    (path,) = folder.glob("*.seg")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 + 60] ^= 0xFF
    path.write_bytes(data)
    box = outbox()
    box.put(100)
    store.wait(6)
    deadline = time.monotonic() + 20
    while path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(store.order[folder.name]) == 5
    assert len(list((folder / "rejected").glob("*.damaged"))) == 1
    assert not (folder / "lock").exists()


@pytest.mark.parametrize("content", [None, b"", b"LMSPO", b"LMSPOOL\x01\x50\0\0\0abc"])
def test_a_writer_killed_before_its_first_frame_leaves_nothing_for_ever(tmp_path, run, content):
    folder = leave(tmp_path, run, [0])
    (path,) = folder.glob("*.seg")
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    found = leftovers.find(tmp_path, sink=SINK, run=run.id, own=tmp_path / "x", notices=Notices())
    assert found is None
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_goes_when_it_is_old(tmp_path, run):
    folder = tmp_path / run.id / ("a" * 32)
    folder.mkdir(parents=True)
    settings = {"sink": SINK, "run": run.id, "own": tmp_path / "x", "notices": Notices()}
    assert leftovers.find(tmp_path, **settings) is None
    assert folder.exists()  # somebody may be starting there
    os.utime(folder, (1.0, 1.0))
    assert leftovers.find(tmp_path, **settings) is None
    assert list(tmp_path.iterdir()) == []


def test_a_living_writer_that_has_written_nothing_yet_is_left_alone(tmp_path, run):
    folder = tmp_path / run.id / ("a" * 32)
    folder.mkdir(parents=True)
    lock = WriterLock.create(folder / "lock")
    assert leftovers.find(tmp_path, sink=SINK, run=run.id, own=tmp_path / "x", notices=Notices()) is None
    assert (folder / "lock").exists()
    lock.release()


def test_frames_whose_header_is_lost_are_left_for_a_person(tmp_path, run):
    folder = leave(tmp_path, run, [0])
    (path,) = folder.glob("*.seg")
    data = bytearray(path.read_bytes())
    data[30] ^= 1
    path.write_bytes(data)
    assert leftovers.find(tmp_path, sink=SINK, run=run.id, own=tmp_path / "x", notices=Notices()) is None
    assert path.read_bytes() == data


def test_folders_that_are_not_ours_are_not_looked_into(tmp_path):
    deep = tmp_path / "home" / "project"
    leave(deep, other(), [0])
    assert list(leftovers._candidates(tmp_path)) == []
    assert len(list(leftovers._candidates(deep))) == 1
    assert list(leftovers._candidates(tmp_path / "missing")) == []


def test_two_processes_do_not_take_one_folder(tmp_path, run):
    leave(tmp_path, run, [0])
    settings = {"sink": SINK, "run": run.id, "own": tmp_path / "x", "notices": Notices()}
    first = leftovers.find(tmp_path, **settings)
    assert first is not None
    assert leftovers.find(tmp_path, **settings) is None
    first.stop()
    second = leftovers.find(tmp_path, **settings)
    assert second is not None
    second.stop()


def test_a_lock_is_held_by_one(tmp_path):
    lock = WriterLock.create(tmp_path / "lock")
    with pytest.raises(FileExistsError):
        WriterLock.create(tmp_path / "lock")
    assert WriterLock.adopt(tmp_path / "lock") is None
    lock.release()
    lock.release()
    again = WriterLock.adopt(tmp_path / "lock")
    assert again is not None
    again.release(remove=True)
    assert not (tmp_path / "lock").exists()


@pytest.fixture
def no_flock(monkeypatch):
    """A file system without locks."""

    def refuse(fd, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)


def owner_of(path, **changes):
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "born": ""}
    path.write_text(json.dumps({**owner, **changes}))
    return path


def test_without_locks_a_living_process_is_known_by_its_number(tmp_path, no_flock):
    lock = WriterLock.create(tmp_path / "lock")
    assert WriterLock.adopt(tmp_path / "lock") is None
    lock.release()
    assert WriterLock.adopt(tmp_path / "lock") is not None  # released by its owner: no guessing
    # A later process with the number of a dead one was born at another time.
    assert WriterLock.adopt(owner_of(tmp_path / "two", born="1")) is not None
    assert WriterLock.adopt(owner_of(tmp_path / "three", pid=2**22 + 5)) is not None


def test_the_owner_on_another_machine_is_dead_when_it_has_been_silent_for_long(tmp_path):
    path = owner_of(tmp_path / "lock", host="another-machine")
    assert WriterLock.adopt(path) is None
    now = path.stat().st_mtime
    assert WriterLock.adopt(path, now=now + STALE - 1) is None
    owner = WriterLock.adopt(path, now=now + STALE + 1)
    assert owner is not None
    owner.release()


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"host": 3}', "\0\0"])
def test_a_lock_that_names_nobody_is_free_after_a_while(tmp_path, content):
    path = tmp_path / "lock"
    path.write_text(content)
    assert WriterLock.adopt(path) is None
    owner = WriterLock.adopt(path, now=time.time() + 60)
    assert owner is not None
    owner.release()


def test_a_living_writer_gives_signs_of_life(outbox, store, spool, monkeypatch):
    monkeypatch.setattr(courier_module, "HEARTBEAT", 0.02)
    monkeypatch.setattr(courier_module, "TICK", 0.01)
    box = outbox()
    box.put(0)
    (lock,) = spool.glob("*/*/lock")
    os.utime(lock, (1.0, 1.0))
    deadline = time.monotonic() + 20
    while lock.stat().st_mtime < 2.0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert lock.stat().st_mtime > 2.0
