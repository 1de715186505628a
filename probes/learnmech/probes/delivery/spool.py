"""This process's part of the spool: every frame on disk before `put` returns, in bounded space, come what may."""

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import msgspec

from learnmech.probes.delivery.gaps import Gaps
from learnmech.probes.delivery.notices import Notices
from learnmech.probes.delivery.shelf import Segment, Shelf
from learnmech.wire import MAX_STEP, Event, Frame, Measurement
from learnmech.wire.disk import DISK, Disk
from learnmech.wire.segments import MAX_AGE, MAX_FRAME, MAX_SEGMENT, SegmentHeader

MEMORY_BYTES = 8 * 1024 * 1024
"""What is held in memory while the disk fails: as much as one segment."""
_RETRY_FIRST, _RETRY_LAST = 1.0, 30.0  # seconds between looks at a failing disk
_MEND = 64  # frames written back under one hold of the lock: about a millisecond of a training step

_encoder = msgspec.msgpack.Encoder()


class FrameTooLarge(ValueError):
    """A frame that no collector would take as one body."""


class Spool:
    """Segments of one writer: appended to by the training thread, read and deleted by the background thread.

    While the disk fails, frames go to a bounded queue in memory instead; they are newer than every segment, and the
    background thread writes them to disk as soon as it works again.

    Attributes:
        header: Whose frames these are.
        folder: The writer's folder.
        next: The next frame's sequence.
        last_step: Step of the newest frame.
        written: Sequence of the last frame that was written or is held in memory.
        gaps: What had to be given up, until a later frame reports it.
    """

    def __init__(
        self,
        root: Path,
        header: SegmentHeader,
        notices: Notices,
        *,
        limit_bytes: int | None,
        disk: Disk = DISK,
        max_age: float = MAX_AGE,
    ) -> None:
        self.header = header
        self.folder = root / header.run.id / header.writer
        self.next = 0
        self.written = -1
        self.last_step = 0
        self.gaps = Gaps()
        self._notices = notices
        self._limit = limit_bytes
        # Eight segments in the space there is: dropping one loses an eighth.
        max_bytes = MAX_SEGMENT if limit_bytes is None else min(MAX_SEGMENT, limit_bytes // 8)
        self._shelf = Shelf(self.folder, header, limit=limit_bytes, max_bytes=max_bytes, max_age=max_age, disk=disk)
        self._lock = threading.Lock()
        self._memory: deque[tuple[int, int, bytes]] = deque()  # sequence, step, payload
        self._memory_bytes = 0
        self._broken = self._finished = False
        self._retry_at, self._retry_in = 0.0, _RETRY_FIRST

    # --- the training thread -----------------------------------------------------------------------------------------

    def put(
        self,
        step: int,
        measurements: Sequence[Measurement],
        events: Sequence[Event],
        samples: int | None,
        tokens: int | None,
    ) -> None:
        """Write one frame. A failing disk is no error here; a frame that cannot be encoded is (`TypeError` ...).

        Raises:
            FrameTooLarge: The frame has to be split.
            ValueError: The step is negative or beyond 64 bits.
        """
        if not 0 <= step <= MAX_STEP:
            raise ValueError(f"step {step} is outside 0 to {MAX_STEP}")
        now = time.time()
        with self._lock:
            if self._finished:
                self._notices.note("closed", "measurements came after the recorder was closed; they are not kept")
                return
            told = [*events, *self.gaps.events(step, now)] if self.gaps else list(events)
            frame = Frame(self.next, step, now, samples, tokens, list(measurements), told)
            payload = _encoder.encode(frame)
            if len(payload) > MAX_FRAME:
                raise FrameTooLarge(f"{len(payload)} bytes; expected at most {MAX_FRAME}")
            # Counted before it is written: an interrupt in between skips a number, never uses one twice.
            self.next += 1
            if len(told) > len(events):
                self.gaps.told(frame.sequence)
            if self._broken or not self._write(frame.sequence, step, payload):
                self._remember(frame.sequence, step, payload)
            self.written, self.last_step = frame.sequence, step

    def _write(self, sequence: int, step: int, payload: bytes) -> bool:
        try:
            self._shelf.append(sequence, step, payload)
        except OSError as error:
            self._broken = True
            self._retry_at = time.monotonic() + self._retry_in
            self._retry_in = min(_RETRY_LAST, 2 * self._retry_in)
            self._notices.note(
                "disk",
                f"cannot write to the spool {self.folder}: {error.strerror or error}. Up to {MEMORY_BYTES} bytes of "
                "measurements are held in memory instead and would be lost with the process; free some space, or set "
                "LEARNMECH_SPOOL to a folder that can be written",
            )
            return False
        finally:
            self._note_dropped()
        return True

    def _note_dropped(self) -> None:
        dropped, self._shelf.dropped = self._shelf.dropped, []
        for segment in dropped:
            self._give_up(segment, "the spool reached its limit")
            self._notices.note(
                "limit",
                f"the spool {self.folder} reached its limit of {self._limit} bytes before it could be delivered; the "
                "oldest measurements are dropped and the gap will be recorded",
            )

    def _give_up(self, segment: Segment, reason: str) -> None:
        first = max(segment.first, segment.taken + 1)
        if first <= segment.last:
            self.gaps.add(first, segment.last, segment.first_step, segment.last_step, reason)

    def _remember(self, sequence: int, step: int, payload: bytes) -> None:
        self._memory.append((sequence, step, payload))
        self._memory_bytes += len(payload)
        while self._memory_bytes > MEMORY_BYTES:
            first, first_step, dropped = self._memory.popleft()
            self._memory_bytes -= len(dropped)
            self.gaps.add(first, first, first_step, first_step, "the disk failed and memory is bounded")

    # --- the background thread ---------------------------------------------------------------------------------------

    def oldest(self) -> Segment | None:
        """Return the oldest segment not yet delivered."""
        with self._lock:
            return self._shelf.segments[0] if self._shelf.segments else None

    def extent(self, segment: Segment) -> tuple[int, int, bool]:
        """Return how many bytes of a segment are whole records, its last sequence, and whether no more will come."""
        with self._lock:
            return segment.size, segment.last, segment.closed

    def claim(self, segment: Segment, last: int) -> bool:
        """Take the frames up to `last` for a batch; False when they were given up meanwhile, and told to be."""
        with self._lock:
            segment.taken = max(segment.taken, last)
            return not segment.dropped

    def forget(self, segment: Segment, lost: str = "") -> None:
        """Delete a segment whose last frame was delivered, or of which the rest is lost for the reason given."""
        with self._lock:
            if lost and not segment.dropped:
                self._give_up(segment, lost)
            self.gaps.settle(segment.last)
            self._shelf.forget(segment)

    def miss(self, first: int, last: int, segment: Segment, reason: str) -> None:
        """Record frames within a segment that cannot be read."""
        with self._lock:
            self.gaps.add(first, last, segment.first_step, segment.last_step, reason)

    def take_memory(self, count: int) -> list[bytes]:
        """Take up to so many frames out of memory, oldest first; none while a segment, which is older, waits."""
        with self._lock:
            if self._shelf.segments:
                return []
            taken = [self._memory.popleft()[2] for _ in range(min(count, len(self._memory)))]
            self._memory_bytes -= sum(map(len, taken))
            return taken

    def put_back(self, frames: Sequence[Frame]) -> None:
        """Return frames that were taken out of memory and not delivered."""
        with self._lock:
            for frame in reversed(frames):
                payload = _encoder.encode(frame)
                self._memory.appendleft((frame.sequence, frame.step, payload))
                self._memory_bytes += len(payload)
            # They are older than whatever comes: nothing is written before they are.
            self._broken = True

    def keep_house(self) -> int:
        """Sync what was written, close what is complete, and see whether the folder is still there.

        Returns:
            The last sequence that would survive a power cut, as far as the disk can be believed.
        """
        with self._lock:
            safe = self.written if not self._memory else self._memory[0][0] - 1
            segments = [segment for segment in self._shelf.segments if segment.writer is not None]
            orphans, self._shelf.orphans = self._shelf.orphans, []
            with contextlib.suppress(OSError):
                if self._shelf.notice_removal():
                    self._notices.note(
                        "removed", f"the spool {self.folder} was removed during training; it is made anew"
                    )
        for writer in orphans:
            writer.close()
        for segment in segments:
            writer_ = segment.writer
            size, _, closed = self.extent(segment)
            if writer_ is not None and size > segment.synced:
                try:
                    writer_.sync()
                    segment.synced = size
                except OSError as error:
                    self._notices.note("sync", f"cannot sync the spool {self.folder}: {error.strerror or error}")
                    safe = min(safe, segment.first - 1)
            if writer_ is not None and closed and not segment.reading and not segment.unlinked:
                segment.writer = None
                writer_.close()
        return safe

    def mend(self, *, now: bool = False) -> None:
        """Write what is held in memory to a disk that failed, when it is time to look again."""
        while self._broken and (now or time.monotonic() >= self._retry_at):
            with self._lock:
                for _ in range(min(_MEND, len(self._memory))):
                    sequence, step, payload = self._memory[0]
                    if not self._write(sequence, step, payload):
                        return
                    self._memory.popleft()
                    self._memory_bytes -= len(payload)
                if not self._memory:
                    self._broken, self._retry_in = False, _RETRY_FIRST
                    self._notices.settle("disk", f"the spool {self.folder} can be written again")
                    return

    def touch(self) -> float | None:
        """Give a sign of life to other machines; return its time by the file system's clock."""
        with self._lock:
            return self._shelf.touch()

    def waiting(self) -> tuple[int, int]:
        """Return the bytes not yet delivered: on disk, and in memory because the disk fails."""
        with self._lock:
            return sum(segment.size for segment in self._shelf.segments), self._memory_bytes

    def seal(self) -> None:
        """Take no more frames and close the last segment."""
        with self._lock:
            self._finished = True
            self._shelf.close_current()

    def finish(self) -> None:
        """Seal, write what memory holds if the disk allows, close the files and give the lock back."""
        self.seal()
        self.mend(now=True)
        with self._lock:
            if self._memory:
                self._notices.note(
                    "lost", f"{len(self._memory)} frames could neither be written to disk nor delivered", logging.ERROR
                )
            self._shelf.finish()

    def leave(self) -> None:
        """In the child of a fork: close the copies of descriptors, without a lock that the parent may hold."""
        self._shelf.leave()
