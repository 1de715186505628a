"""A spool folder: which writers left segments in it, and their frames as batches.

```
spool/RUN/WRITER/00000000.seg 00000001.seg ...    in order
spool/RUN/WRITER/lock                             held by the process that writes, free once it is gone
spool/RUN/WRITER/rejected/                        what the collector refused, with the reasons; nobody delivers it again
```
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from learnmech.wire.disk import DISK, Disk
from learnmech.wire.messages import Batch, Frame, Rejection
from learnmech.wire.segments import SUFFIX, Damage, SegmentHeader, SegmentReader

LOCK = "lock"
REJECTED = "rejected"

BATCH_MEASUREMENTS = 1000
"""Measurements in a batch: enough that the cost of a request or a commit no longer shows."""
BATCH_BYTES = 1024 * 1024
"""Bytes of frames in a batch, a quarter of what a collector takes as one body."""


def segment_path(folder: Path, index: int) -> Path:
    """Return the path of a writer's n-th segment."""
    return folder / f"{index:08d}{SUFFIX}"


def segments(folder: Path) -> list[Path]:
    """Return the segments of one writer in the order in which they were written."""
    found = [path for path in folder.iterdir() if path.suffix == SUFFIX and path.stem.isdigit()]
    return sorted(found, key=lambda path: int(path.stem))


def writer_folders(root: Path) -> Iterator[Path]:
    """Yield every folder at or below `root` that holds segments, but no `rejected` folder below it.

    Args:
        root: A spool, a run's folder in it, or a writer's; also a `rejected` folder, to deliver it after all.
    """
    entries = sorted(root.iterdir())
    if any(entry.suffix == SUFFIX for entry in entries):
        yield root
    for entry in entries:
        if entry.is_dir() and not entry.is_symlink() and entry.name != REJECTED:
            try:
                yield from writer_folders(entry)
            except OSError:
                # Another process finished with that folder and removed it.
                continue


class Cutter:
    """Cuts what a reader yields into pieces that fit one batch. A piece never spans two segments."""

    def __init__(self, reader: SegmentReader) -> None:
        self.reader = reader
        self._held: tuple[Frame, int] | None = None

    def cut(self, end: int | None = None) -> list[Frame]:
        """Return the next frames up to `end`, at least one where there is one, none at the end."""
        frames: list[Frame] = []
        measurements = size = 0
        while True:
            found = self._held or self.reader.next(end)
            self._held = None
            if found is None:
                return frames
            frame, frame_size = found
            measurements += len(frame.measurements)
            size += frame_size
            if frames and (measurements > BATCH_MEASUREMENTS or size > BATCH_BYTES):
                self._held = found
                return frames
            frames.append(frame)

    @property
    def drained(self) -> bool:
        """Whether nothing that was read is still held back."""
        return self._held is None


def batch_of(header: SegmentHeader, frames: list[Frame]) -> Batch:
    """Return frames as a batch of the writer that a header names."""
    return Batch(
        run=header.run,
        attempt=header.attempt,
        start_step=header.start_step,
        writer=header.writer,
        rank=header.rank,
        sent=time.time(),
        frames=frames,
        lineage=header.lineage,
    )


def read_header(folder: Path, disk: Disk = DISK) -> SegmentHeader | None:
    """Return the first readable header of a writer's segments: they all name the same run and writer."""
    for path in segments(folder):
        reader = SegmentReader(path, disk)
        reader.close()
        if reader.header is not None:
            return reader.header
    return None


def batches(
    root: Path,
    on_damage: Callable[[Path, Damage], None] | None = None,
    on_rejection: Callable[[Path, Rejection], None] | None = None,
) -> Iterator[Batch]:
    """Yield everything in a spool as batches, writer by writer and in order; the files stay as they are.

    Reading a spool that is still written to, or twice, is harmless where batches land exactly once.

    Args:
        root: A spool, or a folder in it.
        on_damage: Called with a segment and what of it could not be read.
        on_rejection: Called with a segment and a measurement in it that is no valid message.
    """
    for folder in writer_folders(root):
        for path in segments(folder):
            try:
                reader = SegmentReader(path)
            except FileNotFoundError:
                # Delivered and removed by its own writer meanwhile.
                continue
            try:
                header = reader.header or read_header(folder)
                cutter = Cutter(reader)
                while header is not None and (frames := cutter.cut()):
                    yield batch_of(header, frames)
            finally:
                reader.close()
            if on_damage is not None:
                for damage in reader.damage:
                    on_damage(path, damage)
            if on_rejection is not None:
                for rejection in reader.rejections:
                    on_rejection(path, rejection)
