"""Where batches come from: any writer's frames in order, and this process's own while they are written."""

from typing import Protocol

from learnmech.probes.delivery.notices import Notices
from learnmech.probes.delivery.quarantine import Quarantine
from learnmech.probes.delivery.shelf import Segment
from learnmech.probes.delivery.spool import Spool
from learnmech.wire import Batch, Frame
from learnmech.wire.disk import DISK, Disk
from learnmech.wire.repair import read_frame
from learnmech.wire.segments import SegmentHeader, SegmentReader
from learnmech.wire.spool import BATCH_MEASUREMENTS, Cutter, batch_of

PATIENCE = 5
"""Looks at a file that cannot be read before the others stop waiting for it."""


class Source(Protocol):
    """Frames of one writer, in order. The batch stays the same one until it is settled."""

    header: SegmentHeader
    quarantine: Quarantine

    def batch(self) -> Batch | None:
        """Return the batch to deliver, None when there is nothing (yet)."""

    def settle(self) -> None:
        """Forget the batch: it was acknowledged or set aside."""


class OwnSource:
    """What this process writes, while it is written."""

    def __init__(self, spool: Spool, notices: Notices, quarantine: Quarantine, disk: Disk = DISK) -> None:
        self.header = spool.header
        self.quarantine = quarantine
        self.acked = -1
        self._spool = spool
        self._notices = notices
        self._disk = disk
        self._batch: Batch | None = None
        self._in_memory = False
        self._segment: Segment | None = None
        self._cutter: Cutter | None = None
        self._failures = 0

    def batch(self) -> Batch | None:
        """Return the batch to deliver, None when there is nothing new."""
        if self._batch is None and (frames := self._cut()):
            self._batch = batch_of(self.header, frames)
        return self._batch

    def settle(self) -> None:
        """Forget the batch."""
        if self._batch is not None:
            self.acked = self._batch.frames[-1].sequence
        self._batch, self._in_memory = None, False

    def stop(self) -> None:
        """Give back what only memory holds, and stop reading."""
        if self._batch is not None and self._in_memory:
            self._spool.put_back(self._batch.frames)
        self._batch = None
        self._let_go()

    def _cut(self) -> list[Frame]:
        while (segment := self._spool.oldest()) is not None:
            size, last, closed = self._spool.extent(segment)
            try:
                cutter = self._open(segment)
                frames = cutter.cut(size)
            except OSError as error:
                self._failures += 1
                if segment.dropped or not (isinstance(error, FileNotFoundError) or self._failures >= PATIENCE):
                    return []
                self._notices.note("unreadable", f"cannot read {segment.path}: {error.strerror or error}; going on")
                self._let_go()
                self.acked = max(self.acked, last)
                self._spool.forget(segment, f"a spool segment could not be read ({error.strerror or error})")
                continue
            self._failures = 0
            self._report(segment, last, cutter.reader)
            if frames:
                if self._spool.claim(segment, frames[-1].sequence):
                    return frames
                continue
            # What was damaged is settled too: it will never be more than it is.
            self.acked = max(self.acked, last)
            if not closed:
                return []
            self._finish(segment, cutter.reader)
        return self._from_memory()

    def _from_memory(self) -> list[Frame]:
        read = [frame for payload in self._spool.take_memory(BATCH_MEASUREMENTS // 8) if (frame := read_frame(payload))]
        for _, rejections in read:
            for rejection in rejections:
                self.quarantine.measurement(rejection)
        self._in_memory = bool(read)
        return [frame for frame, _ in read]

    def _open(self, segment: Segment) -> Cutter:
        if segment is not self._segment or self._cutter is None:
            self._let_go()
            # The writer's own descriptor outlives a removed folder.
            source = segment.path if segment.writer is None else segment.writer.fd
            segment.reading = segment.writer is not None
            self._segment, self._cutter = segment, Cutter(SegmentReader(source, self._disk))
        return self._cutter

    def _report(self, segment: Segment, end: int, reader: SegmentReader) -> None:
        """Tell what of a segment could not be read, and keep single measurements that are no valid message."""
        for rejection in reader.rejections:
            self.quarantine.measurement(rejection)
        reader.rejections.clear()
        for damage in reader.damage[segment.reported :]:
            first = segment.first if damage.after is None else damage.after + 1
            last = end if damage.before is None else damage.before - 1
            if damage.kind != "header" and first <= last:
                self._spool.miss(first, last, segment, "a spool segment was damaged")
        segment.reported = len(reader.damage)

    def _finish(self, segment: Segment, reader: SegmentReader) -> None:
        self._let_go()
        if reader.damage:
            self.quarantine.segment(segment.path, reader.damage)
        self._spool.forget(segment)

    def _let_go(self) -> None:
        if self._cutter is not None:
            self._cutter.reader.close()
        if self._segment is not None:
            self._segment.reading = False
        self._segment = self._cutter = None
