"""The segment files of this process, oldest first, within a bound."""

import contextlib
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import msgspec

from learnmech.probes.delivery.lock import WriterLock
from learnmech.wire.disk import Disk
from learnmech.wire.segments import SegmentHeader, SegmentWriter
from learnmech.wire.spool import LOCK, REJECTED, segment_path


@dataclass(slots=True, eq=False)
class Segment:
    """One file, as far as its writer knows it.

    Attributes:
        path: The file.
        first: Sequence of its first frame, at step `first_step`.
        last: Sequence of its last frame, at step `last_step`; below `first` while it is empty.
        writer: Open while it is written, and until it was synced; closed by the background thread only.
        size: Bytes of whole records.
        synced: Bytes known to survive a power cut.
        taken: Sequence of the last frame that went into a batch.
        reported: Number of damages in it that were recorded as gaps.
        closed: Whether no more frames will come.
        reading: Whether a reader uses the writer's descriptor.
        unlinked: Whether somebody removed the file, so that only the descriptor is left of it.
        dropped: Whether it was given up to make room.
    """

    path: Path
    first: int
    first_step: int
    last: int
    last_step: int
    writer: SegmentWriter | None
    size: int
    synced: int = 0
    taken: int = -1
    reported: int = 0
    closed: bool = False
    reading: bool = False
    unlinked: bool = False
    dropped: bool = False


class Shelf:
    """Creates, bounds and removes segments. Not thread-safe: its owner holds a lock.

    Attributes:
        segments: Those not yet delivered; the last one may still be written.
        dropped: Segments given up to make room, for the owner to note and clear.
        orphans: Writers of dropped segments, for the background thread to close.
    """

    def __init__(
        self, folder: Path, header: SegmentHeader, *, limit: int | None, max_bytes: int, max_age: float, disk: Disk
    ) -> None:
        self.folder = folder
        self.segments: deque[Segment] = deque()
        self.dropped: list[Segment] = []
        self.orphans: list[SegmentWriter] = []
        self._undead: list[Path] = []
        self._header = header
        self._limit = limit
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._disk = disk
        self._current: Segment | None = None
        self._owner: WriterLock | None = None
        self._index = 0

    def append(self, sequence: int, step: int, payload: bytes) -> None:
        """Write one frame, after dropping segments where there is no room for it.

        Raises:
            OSError: Nothing was written, and the segment is closed.
        """
        try:
            current = self._current
            if current is None or current.writer is None or current.writer.full(self._max_bytes, self._max_age):
                self._make_room()
                current = self._begin(sequence, step)
            writer = current.writer
            if writer is not None:
                writer.append(payload)
                current.last, current.last_step, current.size = sequence, step, writer.size
        except OSError:
            self.close_current()
            raise

    def close_current(self) -> None:
        """Let the next frame begin a new segment."""
        if self._current is not None:
            self._current.closed = True
            self._current = None

    def forget(self, segment: Segment) -> None:
        """Remove a segment that is delivered. Called by the background thread."""
        if segment in self.segments:
            self.segments.remove(segment)
        if segment.writer is not None:
            segment.writer.close()
        self._remove(segment.path)

    def notice_removal(self) -> bool:
        """Whether somebody removed the file that is written; the next frame then begins a new one in a new folder."""
        current = self._current
        if current is None or current.writer is None or self._disk.linked(current.writer.fd):
            return False
        current.unlinked = True
        self.close_current()
        if self._owner is not None:
            self._owner.release(remove=True)
            self._owner = None
        return True

    def touch(self) -> float | None:
        """Give a sign of life on the lock; return its time by the file system's clock."""
        return self._owner.touch() if self._owner is not None else None

    def finish(self) -> None:
        """Close every file, remove empty folders and give the lock back."""
        self.close_current()
        undead, self._undead = self._undead, []
        for path in undead:
            self._remove(path)
        for segment in self.segments:
            if segment.writer is not None:
                segment.writer.close()
        if self._owner is not None:
            self._owner.release(remove=not self.segments)
            self._owner = None
        if not self.segments:
            remove_empty(self.folder, self._disk)

    def leave(self) -> None:
        """Close the copies of descriptors that a fork made, and touch nothing else."""
        if self._owner is not None:
            self._owner.leave()
        for segment in self.segments:
            if segment.writer is not None:
                with contextlib.suppress(OSError):
                    segment.writer.close()

    def _begin(self, sequence: int, step: int) -> Segment:
        self.close_current()
        if self._owner is None:
            self._disk.make_folder(self.folder)
            with contextlib.suppress(FileNotFoundError):
                # No other process has our name: a lock that is here is ours, from a start that Ctrl-C cut short.
                (self.folder / LOCK).unlink()
            self._owner = WriterLock.create(self.folder / LOCK)
        path = segment_path(self.folder, self._index)
        self._index += 1
        header = msgspec.structs.replace(self._header, first_sequence=sequence, created=time.time())
        writer = SegmentWriter(path, header, self._disk)
        self._current = Segment(path, sequence, step, sequence - 1, step, writer, writer.size)
        self.segments.append(self._current)
        return self._current

    def _make_room(self) -> None:
        total = sum(segment.size for segment in self.segments)
        while self._limit is not None and self.segments and total + self._max_bytes > self._limit:
            oldest = self.segments.popleft()
            total -= oldest.size
            oldest.dropped = True
            if oldest.writer is not None:
                self.orphans.append(oldest.writer)
            self._remove(oldest.path)
            self.dropped.append(oldest)

    def _remove(self, path: Path) -> None:
        try:
            self._disk.remove(path)
        except OSError:
            # Tried again at the end; should it stay, it is delivered twice, which is harmless.
            self._undead.append(path)


def remove_empty(folder: Path, disk: Disk) -> None:
    """Remove a writer's folder and its run's, unless something is left in them."""
    for path in (folder / REJECTED, folder, folder.parent):
        with contextlib.suppress(OSError):
            disk.remove_folder(path)
