"""What dead processes left in the spool: found, taken over and delivered under their own names.

Writer, sequence and attempt stay what they were, so a store that already has some of it does not count it twice.
"""

import contextlib
import logging
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from learnmech.probes.delivery.lock import CHILLED, WriterLock
from learnmech.probes.delivery.notices import Notices
from learnmech.probes.delivery.quarantine import Quarantine
from learnmech.probes.delivery.shelf import remove_empty
from learnmech.probes.delivery.sources import PATIENCE
from learnmech.wire import VERSION, Batch
from learnmech.wire.disk import DISK, Disk
from learnmech.wire.segments import SegmentHeader, SegmentReader
from learnmech.wire.spool import LOCK, Cutter, batch_of, read_header, segments


class LeftSource:
    """One dead writer's segments. It owns the folder until it has delivered everything or is stopped.

    Attributes:
        header: Whose frames these are.
        quarantine: Where refused ones go.
        finished: Whether the folder was given back.
    """

    def __init__(
        self, folder: Path, header: SegmentHeader, owner: WriterLock, notices: Notices, disk: Disk = DISK
    ) -> None:
        self.header = header
        self.quarantine = Quarantine(folder, notices, disk=disk)
        self.finished = False
        self._folder = folder
        self._owner = owner
        self._notices = notices
        self._disk = disk
        self._paths = deque(segments(folder))
        self._cutter: Cutter | None = None
        self._batch: Batch | None = None
        self._failures = 0

    def batch(self) -> Batch | None:
        """Return the batch to deliver, None at the end or when the disk fails."""
        if self._batch is None and not self.finished:
            try:
                self._batch = self._next()
                self._failures = 0
            except OSError as error:
                self._failures += 1
                if isinstance(error, FileNotFoundError) or self._failures >= PATIENCE:
                    # An unreadable file stays where it is, for somebody with a better disk.
                    self._let_go()
                    self._paths.popleft()
                    self._failures = 0
        return self._batch

    def settle(self) -> None:
        """Forget the batch."""
        self._batch = None

    def touch(self) -> None:
        """Give a sign of life to other machines."""
        self._owner.touch()

    def stop(self) -> None:
        """Give the folder back; what was not delivered stays for the next one who looks."""
        self._let_go()
        self.finished = True
        left = True
        with contextlib.suppress(OSError):
            left = bool(segments(self._folder))
        self._owner.release(remove=not left)
        if not left:
            remove_empty(self._folder, self._disk)

    def leave(self) -> None:
        """In the child of a fork: let go of the lock's copy."""
        self._owner.leave()

    def _next(self) -> Batch | None:
        while self._paths:
            path = self._paths[0]
            if self._cutter is None:
                self._cutter = Cutter(SegmentReader(path, self._disk))
            if frames := self._cutter.cut():
                return batch_of(self.header, frames)
            reader = self._cutter.reader
            self._let_go()
            self._paths.popleft()
            self._put_away(path, reader)
        self.stop()
        return None

    def _put_away(self, path: Path, reader: SegmentReader) -> None:
        """Remove a segment that was delivered, or keep what of it could not be."""
        for rejection in reader.rejections:
            self.quarantine.measurement(rejection)
        kinds = {damage.kind for damage in reader.damage}
        if "torn" in kinds:
            # How a killed process leaves its last segment: the frame it was writing.
            torn = sum(damage.size for damage in reader.damage if damage.kind == "torn")
            self._notices.note(f"torn {path}", f"{path} ends in {torn} bytes of an unfinished frame", logging.INFO)
        if "version" in kinds:
            self._notices.note("version", f"{path} was written by a newer learnmech and is left to it")
        elif kinds - {"torn"}:
            self.quarantine.segment(path, reader.damage)
        else:
            self._disk.remove(path)

    def _let_go(self) -> None:
        if self._cutter is not None:
            self._cutter.reader.close()
        self._cutter = None


def find(
    root: Path, *, sink: str, run: str, own: Path, notices: Notices, now: float | None = None, disk: Disk = DISK
) -> LeftSource | None:
    """Take over the segments of one dead writer, if there is one whose frames belong where ours go.

    Args:
        root: The spool.
        sink: Identity of our sink; what was meant for another one stays.
        run: Our run: its earlier attempts go where it goes now, wherever they were meant to.
        own: Our own folder.
        notices: Where to say what was found.
        now: Seconds since the epoch by the clock of the spool's file system.
        disk: The file system.
    """
    for folder in _candidates(root):
        if folder == own:
            continue
        with contextlib.suppress(OSError):
            header = read_header(folder, disk)
            if header is None:
                _sweep(folder, now, disk)
                continue
            if not _ours(header, sink, run):
                continue
            owner = WriterLock.adopt(folder / LOCK, now)
            if owner is not None:
                notices.note(
                    f"left {folder}",
                    f"delivering what an earlier process of run {header.run.name} left in {folder}",
                    logging.INFO,
                )
                return LeftSource(folder, header, owner, notices, disk)
    return None


def _sweep(folder: Path, now: float | None, disk: Disk) -> None:
    """Remove the folder of a writer that was killed before its first frame, or after its last was delivered."""
    if not (folder / LOCK).exists():
        if time.time() - folder.stat().st_mtime > CHILLED and not any(folder.iterdir()):
            remove_empty(folder, disk)
        return
    if (owner := WriterLock.adopt(folder / LOCK, now)) is None:
        return
    try:
        for path in segments(folder):
            reader = SegmentReader(path, disk)
            empty = reader.next() is None and all(damage.kind == "torn" for damage in reader.damage)
            reader.close()
            if empty:
                disk.remove(path)
        done = not segments(folder)
    except OSError:
        done = False
    owner.release(remove=done)
    if done:
        remove_empty(folder, disk)


def _ours(header: SegmentHeader, sink: str, run: str) -> bool:
    if header.version != VERSION or header.sink.startswith("spool:"):
        # What was spooled on purpose is kept for whoever asked for it.
        return False
    return header.run.id == run or (header.sink == sink and not sink.endswith(":memory:"))


def _candidates(root: Path) -> Iterator[Path]:
    """Yield the folders two levels down, and look no deeper: the root may hold much that is not ours."""
    with contextlib.suppress(OSError):
        for run in sorted(root.iterdir()):
            if len(run.name) == 32 and run.is_dir():
                with contextlib.suppress(OSError):
                    yield from sorted(folder for folder in run.iterdir() if len(folder.name) == 32)
