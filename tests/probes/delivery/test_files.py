"""The spool as a sink for whoever has batches in hand: what goes in comes out, and a living writer is not disturbed."""

import pytest

from learnmech.probes.delivery import Outbox
from learnmech.probes.delivery.files import SpoolSink
from learnmech.sinks import SinkError, Unavailable
from learnmech.wire import Batch, Frame, Lineage, Measurement
from learnmech.wire.spool import batches


def batch(run, first, **settings):
    frames = [Frame(n, n, 1.0, measurements=[Measurement("loss", float(n))]) for n in range(first, first + 3)]
    return Batch(run=run, writer="f" * 32, rank=2, attempt=1, start_step=5, sent=1.0, frames=frames, **settings)


def test_what_goes_in_comes_out(run, tmp_path):
    sink = SpoolSink(f"spool:{tmp_path}/kept")
    lineage = Lineage(id="1" * 32, begun=5.0)
    acks = [sink.deliver(batch(run, first, lineage=lineage)) for first in (0, 3)]
    assert [(ack.accepted, ack.last_sequence) for ack in acks] == [(3, 2), (3, 5)]
    beat = Batch(run=run, writer="f" * 32, sent=1.0, heartbeat=True)
    assert sink.deliver(beat).last_sequence == -1
    sink.close()
    one, two = batches(tmp_path / "kept")
    assert [frame.step for frame in one.frames + two.frames] == list(range(6))
    assert (one.run, one.writer, one.rank, one.attempt, one.start_step) == (run, "f" * 32, 2, 1, 5)
    assert one.lineage == two.lineage == lineage


def test_a_living_writer_is_not_disturbed(run, tmp_path):
    box = Outbox(run, sink=f"spool:{tmp_path}/kept")
    box.put(0)
    (found,) = batches(tmp_path / "kept")
    with pytest.raises(Unavailable, match="alive"):
        SpoolSink(f"spool:{tmp_path}/kept").deliver(found)
    box.close()


def test_a_folder_that_cannot_be_written(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="cannot write"):
        SpoolSink(f"spool:{tmp_path}/file").deliver(batch(run, 0))


def test_no_folder():
    with pytest.raises(SinkError, match="expected for instance spool:"):
        SpoolSink("spool:")
