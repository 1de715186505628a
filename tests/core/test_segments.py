"""The spool's file format: what was written is read, whatever is cut off or flipped is reported and never believed."""

import random
import struct
import time
import zlib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learnmech.wire import Event, Frame, Lineage, Measurement, RunInfo, Status, encode
from learnmech.wire import segments as format_
from learnmech.wire.disk import Disk
from learnmech.wire.segments import MAGIC, SegmentHeader, SegmentReader, SegmentWriter, record
from learnmech.wire.spool import Cutter, batches, segment_path, segments, writer_folders

RUN = RunInfo("0" * 32, "a run", 1.0, tags={"team": "optik"}, context={"optimizer": "AdamW", "parameters": 10})
HEADER = SegmentHeader(run=RUN, attempt=2, start_step=40, writer="f" * 32, rank=3, sink="http://host:8765", created=5.0)

names = st.text(max_size=30)
numbers = st.none() | st.floats(allow_nan=True, allow_infinity=True)
measurements = st.builds(
    Measurement, names, numbers, names, numbers, st.sampled_from(Status), names, names, st.none() | st.floats(0, 1e9)
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=5,
)
steps = st.integers(0, 2**63 - 1)
events = st.builds(
    Event,
    names,
    steps,
    st.floats(0, 1e10),
    names,
    st.sampled_from(["info", "warning", "error"]),
    st.dictionaries(st.text(max_size=5), json_values, max_size=3),
)
bodies = st.tuples(
    steps,
    st.floats(0, 1e10),
    st.none() | steps,
    st.none() | steps,
    st.lists(measurements, max_size=4),
    st.lists(events, max_size=2),
)


def frame(sequence: int, count: int = 2) -> Frame:
    values = [Measurement("sharpness", sequence + 0.5 * index, stderr=0.1) for index in range(count)]
    return Frame(sequence, 10 * sequence, 1e9 + sequence, measurements=values)


def write(path: Path, frames: list[Frame], header: SegmentHeader = HEADER) -> Path:
    writer = SegmentWriter(path, header)
    for item in frames:
        writer.append(encode(item))
    writer.close()
    return path


def read(path: Path) -> tuple[list[Frame], SegmentReader]:
    reader = SegmentReader(path)
    frames = []
    while (found := reader.next()) is not None:
        frames.append(found[0])
    reader.close()
    return frames, reader


def same(one: list[Frame], other: list[Frame]) -> bool:
    # By bytes: NaN is not equal to itself.
    return [encode(item) for item in one] == [encode(item) for item in other]


@given(st.lists(bodies, max_size=12))
@settings(max_examples=60, deadline=None)
def test_what_was_written_is_read(tmp_path_factory, rows):
    frames = [Frame(sequence, *row) for sequence, row in enumerate(rows)]
    found, reader = read(write(tmp_path_factory.mktemp("s") / "0.seg", frames))
    assert same(found, frames)
    assert reader.header == HEADER
    assert reader.damage == []
    assert reader.rejections == []


def test_the_layout_is_what_the_docstring_says(tmp_path):
    # Read with struct and zlib alone: another language could.
    data = write(tmp_path / "0.seg", [frame(0), frame(1)]).read_bytes()
    assert data[:8] == b"LMSPOOL\x01"
    offset, payloads = 8, []
    while offset < len(data):
        length, checksum = struct.unpack_from("<II", data, offset)
        payloads.append(data[offset + 8 : offset + 8 + length])
        assert zlib.crc32(payloads[-1]) == checksum
        offset += 8 + length
    assert msgspec.msgpack.decode(payloads[0])["writer"] == "f" * 32
    assert [msgspec.msgpack.decode(payload)["sequence"] for payload in payloads[1:]] == [0, 1]


def test_a_reader_follows_a_segment_that_grows(tmp_path):
    writer = SegmentWriter(tmp_path / "0.seg", HEADER)
    reader = SegmentReader(writer.fd)
    for sequence in range(50):
        assert reader.next(writer.size) is None
        writer.append(encode(frame(sequence)))
        assert reader.next(writer.size)[0].sequence == sequence
    assert reader.damage == []
    reader.close()
    writer.append(encode(frame(50)))  # the descriptor is still the writer's
    writer.close()


def small(tmp_path: Path) -> tuple[Path, list[Frame], bytes]:
    frames = [frame(sequence, 1) for sequence in range(4)]
    path = write(tmp_path / "0.seg", frames)
    return path, frames, path.read_bytes()


def test_a_segment_cut_at_any_byte_yields_its_whole_frames(tmp_path):
    path, frames, whole = small(tmp_path)
    ends = [len(MAGIC) + len(record(msgspec.msgpack.encode(HEADER)))]
    for item in frames:
        ends.append(ends[-1] + len(record(encode(item))))
    assert ends[-1] == len(whole)
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        found, reader = read(path)
        assert same(found, frames[: max(0, sum(end <= cut for end in ends) - 1)])
        if cut >= ends[0] and cut not in ends:
            assert [item.kind for item in reader.damage] == ["torn"]
            assert reader.damage[0].offset + reader.damage[0].size == cut
        elif cut in ends:
            assert reader.damage == []
        else:
            assert reader.header is None
            assert [(item.kind, item.size) for item in reader.damage] == ([("torn", cut)] if cut else [])


@pytest.mark.parametrize("bit", [0x01, 0x80])
def test_a_flipped_byte_costs_one_frame_and_is_reported(tmp_path, bit):
    path, frames, whole = small(tmp_path)
    start = len(MAGIC) + len(record(msgspec.msgpack.encode(HEADER)))
    allowed = {encode(item) for item in frames}
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ bit]) + whole[position + 1 :])
        found, reader = read(path)
        assert {encode(item) for item in found} <= allowed
        assert reader.damage, position
        if position >= start:
            lost = [item.sequence for item in frames if item not in found]
            assert len(lost) == 1
            (damage,) = reader.damage
            assert (damage.after, damage.before) == (
                lost[0] - 1 if lost[0] else None,
                lost[0] + 1 if lost[0] < 3 else None,
            )
            assert damage.kind == ("torn" if lost[0] == 3 else "corrupt")
        elif position >= len(MAGIC):
            assert reader.header is None
            assert same(found, frames)  # a lost header loses no frame


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_no_damage_makes_a_reader_raise_or_lie(tmp_path_factory, data):
    path, frames, whole = small(tmp_path_factory.mktemp("s"))
    broken = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(broken)))
        end = data.draw(st.integers(start, min(len(broken), start + 200)))
        broken[start:end] = data.draw(st.binary(max_size=200))
    path.write_bytes(broken)
    found, reader = read(path)
    assert {encode(item) for item in found} <= {encode(item) for item in frames}
    assert [item.sequence for item in found] == sorted({item.sequence for item in found})
    assert same(found, frames) or reader.damage


def test_a_long_stretch_of_garbage_is_crossed_quickly(tmp_path):
    garbage = random.Random(1).randbytes(8 * 1024 * 1024)
    path = write(tmp_path / "0.seg", [frame(0)])
    path.write_bytes(path.read_bytes() + garbage + record(encode(frame(1))))
    began = time.thread_time()
    found, reader = read(path)
    assert [item.sequence for item in found] == [0, 1]
    assert [(item.kind, item.size, item.after, item.before) for item in reader.damage] == [("corrupt", 2**23, 0, 1)]
    # Looking for the mark takes milliseconds; a checksum at every plausible length would take seconds.
    assert time.thread_time() - began < 2.0


def test_a_mark_across_two_reads_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(format_, "_CHUNK", 64)
    path = write(tmp_path / "0.seg", [frame(0)])
    start = path.read_bytes()
    for gap in range(40, 180):
        path.write_bytes(start + b"\0" * gap + record(encode(frame(1))))
        assert [item.sequence for item in read(path)[0]] == [0, 1]


def test_a_frame_inside_the_text_of_a_damaged_frame_does_not_pass_for_a_later_one(tmp_path):
    inner = record(encode(frame(3)))
    text = inner.decode("latin-1")
    outer = Frame(5, 1, 1.0, events=[Event("user", 1, 1.0, message=text)])
    payload = bytearray(encode(outer).replace(text.encode(), inner))
    payload[1] ^= 1
    path = write(tmp_path / "0.seg", [frame(4)])
    path.write_bytes(path.read_bytes() + record(bytes(payload))[:8] + bytes(payload) + record(encode(frame(6))))
    found, reader = read(path)
    assert [item.sequence for item in found] == [4, 6]
    assert reader.damage


def test_one_bad_measurement_does_not_take_its_frame_along(tmp_path):
    bad = {"sequence": 7, "step": 3, "time": 2.0, "samples": -4, "tokens": 9}
    bad["measurements"] = [{"observable": "loss", "value": 1.0}, {"observable": "sharpness", "value": "big"}, 3]
    bad["events"] = [{"kind": "user", "step": 1, "time": 1.0}, {"kind": 1}]
    writer = SegmentWriter(tmp_path / "0.seg", HEADER)
    writer.append(msgspec.msgpack.encode(bad))
    writer.append(encode(frame(8)))
    writer.close()
    (first, second), reader = read(tmp_path / "0.seg")
    assert first == Frame(7, 3, 2.0, None, 9, measurements=[Measurement("loss", 1.0)], events=[Event("user", 1, 1.0)])
    assert second == frame(8)
    assert [(item.sequence, item.index, item.observable) for item in reader.rejections] == [
        (7, 1, "sharpness"),
        (7, 2, ""),
    ]
    assert "value" in reader.rejections[0].reason
    assert reader.damage == []


def test_a_newer_format_is_left_alone(tmp_path):
    path = write(tmp_path / "0.seg", [frame(0)])
    data = bytearray(path.read_bytes())
    data[7] = 2
    path.write_bytes(data)
    found, reader = read(path)
    assert found == []
    assert [item.kind for item in reader.damage] == ["version"]


class Full(Disk):
    """A disk with room for so many bytes."""

    def __init__(self, room: int) -> None:
        self.room = room

    def write(self, fd, data):
        taken = super().write(fd, data[: self.room])
        self.room -= taken
        return taken


def test_a_short_write_leaves_whole_frames(tmp_path):
    whole = write(tmp_path / "whole.seg", [frame(0), frame(1)]).stat().st_size
    writer = SegmentWriter(tmp_path / "0.seg", HEADER, Full(whole - 3))
    writer.append(encode(frame(0)))
    with pytest.raises(OSError, match=r"of .* bytes fit on the disk"):
        writer.append(encode(frame(1)))
    writer.close()
    found, reader = read(tmp_path / "0.seg")
    assert same(found, [frame(0)])
    assert reader.damage == []


def test_no_segment_is_left_when_its_header_does_not_fit(tmp_path):
    with pytest.raises(OSError, match="fit on the disk"):
        SegmentWriter(tmp_path / "0.seg", HEADER, Full(20))
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_between_the_write_and_its_count_is_made_good(tmp_path):
    class Interrupted(Disk):
        armed = False

        def write(self, fd, data):
            written = super().write(fd, data)
            if self.armed:
                self.armed = False
                raise KeyboardInterrupt
            return written

    disk = Interrupted()
    writer = SegmentWriter(tmp_path / "0.seg", HEADER, disk)
    disk.armed = True
    with pytest.raises(KeyboardInterrupt):
        writer.append(encode(frame(0)))
    writer.append(encode(frame(1)))
    assert writer.size == (tmp_path / "0.seg").stat().st_size
    writer.close()
    assert same(read(tmp_path / "0.seg")[0], [frame(0), frame(1)])


def test_batches_are_bounded_and_in_order(tmp_path):
    counts = [400, 400, 400, 1, 1500, 10]
    reader = SegmentReader(write(tmp_path / "0.seg", [frame(index, count) for index, count in enumerate(counts)]))
    cutter = Cutter(reader)
    pieces = []
    while piece := cutter.cut():
        pieces.append([item.sequence for item in piece])
    reader.close()
    assert pieces == [[0, 1], [2, 3], [4], [5]]

    big = [Frame(index, 0, 1.0, events=[Event("user", 0, 1.0, message="x" * 19_000)] * 20) for index in range(5)]
    reader = SegmentReader(write(tmp_path / "1.seg", big))
    cutter = Cutter(reader)
    assert [len(cutter.cut()) for _ in range(4)] == [2, 2, 1, 0]
    reader.close()


def test_a_spool_is_read_as_batches(tmp_path):
    one, two = tmp_path / "spool" / RUN.id / ("a" * 32), tmp_path / "spool" / RUN.id / ("b" * 32)
    for folder in (one, two, one / "rejected"):
        folder.mkdir(parents=True)
    header = msgspec.structs.replace(HEADER, writer="a" * 32)
    write(segment_path(one, 0), [frame(0)], header)
    write(segment_path(one, 10), [frame(2)], header)
    write(segment_path(one, 9), [frame(1)], header)
    write(segment_path(one / "rejected", 7), [frame(7)], header)
    (one / "lock").write_text("x")
    write(segment_path(two, 0), [frame(0)])
    assert [path.stem for path in segments(one)] == ["00000000", "00000009", "00000010"]
    assert list(writer_folders(tmp_path)) == [one, two]

    found = list(batches(tmp_path / "spool"))
    assert [(batch.writer[0], [item.sequence for item in batch.frames]) for batch in found] == [
        ("a", [0]),
        ("a", [1]),
        ("a", [2]),
        ("f", [0]),
    ]
    assert (found[0].run, found[0].attempt, found[0].start_step, found[0].rank) == (RUN, 2, 40, 3)
    # What was refused is delivered again only when it is asked for by name.
    assert [batch.frames[0].sequence for batch in batches(one / "rejected")] == [7]


@pytest.mark.parametrize("lineage", [msgspec.UNSET, Lineage(id="1" * 32, begun=5.0, parent="2" * 32)])
def test_batches_say_which_attempt_they_are_of_as_far_as_the_header_does(tmp_path, lineage):
    """Segments of older clients do not say it: a header without lineage has the bytes it always had."""
    header = msgspec.structs.replace(HEADER, lineage=lineage)
    assert (b"lineage" in msgspec.msgpack.encode(header)) == (lineage is not msgspec.UNSET)
    writer = SegmentWriter(segment_path(tmp_path, 0), header)
    writer.append(encode(frame(0)))
    writer.close()
    assert [batch.lineage for batch in batches(tmp_path)] == [lineage]


def test_a_header_that_is_lost_is_taken_from_a_neighbour(tmp_path):
    write(segment_path(tmp_path, 0), [frame(0)])
    path = write(segment_path(tmp_path, 1), [frame(1)])
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)
    damage = []
    found = list(batches(tmp_path, on_damage=lambda path, item: damage.append((path.name, item.kind))))
    assert [batch.frames[0].sequence for batch in found] == [0, 1]
    assert ("00000001.seg", "header") in damage
