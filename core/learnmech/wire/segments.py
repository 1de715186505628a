"""The spool's file format: an append-only segment of frames that survives being killed at any byte.

```
segment = "LMSPOOL" version:u8  record(SegmentHeader)  record(Frame)*
record  = length:u32  crc32:u32  payload            little-endian; crc32 (zlib) of the payload; payload in MessagePack
```

A frame's first key is `sequence`: that is what a reader looks for when it has lost the thread.

One frame is one `write()`, so a killed process loses nothing that `append` has returned for. A reader never trusts a
length: what does not match its checksum is skipped up to the next record that does, and reported as `Damage`.
"""

import errno
import struct
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from learnmech.wire.disk import DISK, Disk
from learnmech.wire.messages import VERSION, Frame, Identifier, Lineage, Rejection, RunInfo
from learnmech.wire.repair import read_frame

SUFFIX = ".seg"
FORMAT = 1
"""Version of the file format."""
MAGIC = b"LMSPOOL" + bytes([FORMAT])
RECORD = struct.Struct("<II")

MAX_FRAME = 4 * 1024 * 1024
"""Largest payload of a record in bytes: what a collector accepts as one body."""
MAX_SEGMENT = 8 * 1024 * 1024
"""Bytes after which a segment is closed; with `MAX_AGE` it bounds what one delete or one loss can concern."""
MAX_AGE = 60.0
"""Seconds after which a segment is closed."""

_CHUNK = 256 * 1024
_MARK = b"\xa8sequence"  # the first key of a frame, one byte (the size of the map) into its payload
_encoder = msgspec.msgpack.Encoder()


class SegmentHeader(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Whose frames a segment holds: everything of a `Batch` but its frames.

    Attributes:
        run: The run.
        attempt: The attempt of the run.
        start_step: Step at which the attempt began.
        writer: 32 hexadecimal digits naming the writer.
        rank: Distributed rank of the writer.
        sink: Where the frames are to go, without credentials (`learnmech.sinks.identity`).
        first_sequence: Sequence of the first frame that was to come.
        created: Seconds since the epoch.
        version: Version of the messages inside.
        lineage: Tells attempts of the same number apart; unset in segments of older clients.
    """

    run: RunInfo
    attempt: int = 0
    start_step: int = 0
    writer: Identifier
    rank: int = 0
    sink: str = ""
    first_sequence: int = 0
    created: float = 0.0
    version: int = VERSION
    lineage: Lineage | msgspec.UnsetType = msgspec.UNSET


_headers = msgspec.msgpack.Decoder(SegmentHeader)


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes of a segment that hold no readable frame.

    Attributes:
        kind: `torn` (the end is missing: the writer was killed, or the file was cut), `corrupt` (bytes in the middle),
            `header` or `version` (written by a newer learnmech; nothing was read).
        offset: Where it begins.
        size: How many bytes.
        after: Sequence of the last good frame before it, None at the start.
        before: Sequence of the first good frame after it, None at the end. Lost is what lies strictly between the two.
    """

    kind: str
    offset: int
    size: int
    after: int | None = None
    before: int | None = None


def record(payload: bytes) -> bytes:
    """Return a payload with its length and checksum in front."""
    return RECORD.pack(len(payload), zlib.crc32(payload)) + payload


class SegmentWriter:
    """Writes one segment. Not thread-safe: its owner holds a lock.

    Attributes:
        path: The file.
        fd: Its descriptor, open for reading too, so that the owner can read what it wrote even when the folder is gone.
        size: Bytes of whole records so far; nothing beyond is valid.
        frames: Frames so far.
    """

    def __init__(self, path: Path, header: SegmentHeader, disk: Disk = DISK) -> None:
        """Create the file and write its header; when that fails (`OSError`) no file is left behind."""
        self.path = path
        self.size = self.frames = 0
        self._unsure = False
        self.opened = time.monotonic()
        self._disk = disk
        self.fd = disk.create(path)
        try:
            self._write(MAGIC + record(_encoder.encode(header)))
        except BaseException:  # Ctrl-C too
            self.close()
            disk.remove(path)
            raise

    def append(self, payload: bytes) -> None:
        """Write one frame, given in MessagePack, with one `write()`.

        After an `OSError` it was not written; close this segment and begin another, because its end may be torn.
        """
        self._write(RECORD.pack(len(payload), zlib.crc32(payload)) + payload)
        self.frames += 1

    def full(self, max_bytes: int = MAX_SEGMENT, max_age: float = MAX_AGE) -> bool:
        """Whether it is time for the next segment, by size or by age."""
        return self.frames > 0 and (self.size >= max_bytes or time.monotonic() - self.opened >= max_age)

    def sync(self) -> None:
        """Wait until what was written would survive a power cut."""
        self._disk.sync(self.fd)

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        # The number is given up first: after a fork between the two lines nobody closes a stranger's file.
        fd, self.fd = self.fd, -1
        if fd >= 0:
            self._disk.close(fd)

    def _write(self, data: bytes) -> None:
        if self._unsure:
            # Ctrl-C came between the last write and the line that counted it.
            self.size = self._disk.size(self.fd)
        self._unsure = True
        written = self._disk.write(self.fd, data)
        if written != len(data):
            # A short write is a full disk: take the piece back, so that the file ends with a whole record.
            self._disk.truncate(self.fd, self.size)
            raise OSError(errno.ENOSPC, f"only {written} of {len(data)} bytes fit on the disk", str(self.path))
        self.size += written
        self._unsure = False


class SegmentReader:
    """Reads one segment, from its start or on as it grows. Raises nothing but `OSError` of the disk itself.

    Attributes:
        header: The segment's header, None when it is damaged.
        offset: How far it has been read.
        last: Sequence of the last frame read.
        damage: What could not be read so far.
        rejections: Measurements of readable frames that are no valid message; everything else of those frames is read.
    """

    def __init__(self, source: Path | int, disk: Disk = DISK) -> None:
        """Open a path, or read through a descriptor that stays its owner's."""
        self._disk = disk
        self._owned = not isinstance(source, int)
        self._fd = source if isinstance(source, int) else disk.open(source)
        self._buffer = b""
        self._start = 0  # file position of the buffer's first byte
        self._foreign = False
        self.offset = 0
        self.last: int | None = None
        self.damage: list[Damage] = []
        self.rejections: list[Rejection] = []
        self.header = self._read_header(disk.size(self._fd))

    def next(self, end: int | None = None) -> tuple[Frame, int] | None:
        """Return the next frame and its size in bytes, or None when there is none before `end`.

        Args:
            end: Where to stop: the writer's `size` for a segment that is still written (it lies between two records),
                None for the end of the file. What lies before it and is no frame counts as damage.
        """
        end = self._disk.size(self._fd) if end is None else end
        if self._foreign:
            self.offset = end
        start, after = self.offset, self.last
        while self.offset < end:
            found = self._frame_at(self.offset, end)
            if found is not None:
                frame, size = found
                if self.offset > start:
                    self.damage.append(Damage("corrupt", start, self.offset - start, after, frame.sequence))
                self.offset += RECORD.size + size
                self.last = frame.sequence
                return frame, size
            self.offset = self._candidate(self.offset + 1, end)
        if self.offset > start and not self._foreign:
            self.damage.append(Damage("torn", start, self.offset - start, after, None))
        return None

    def close(self) -> None:
        """Close the file, if it was opened here."""
        if self._owned:
            self._disk.close(self._fd)
            self._owned = False

    def _read_header(self, end: int) -> SegmentHeader | None:
        magic = self._bytes(0, len(MAGIC))
        if magic[:-1] == MAGIC[:-1] and len(magic) == len(MAGIC) and magic[-1] > FORMAT:
            self._foreign = True
            self.damage.append(Damage("version", 0, end))
            return None
        self.offset = min(len(MAGIC), end)
        payload = self._payload_at(self.offset, end)
        if payload is not None and magic == MAGIC:
            try:
                header = _headers.decode(payload)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                header = None
            if header is not None:
                self.offset += RECORD.size + len(payload)
                return header
        if magic == MAGIC[: len(magic)] and self._candidate(self.offset, end) == end:
            # The writer was killed before it had written the header; a file without a byte lacks nothing.
            self.offset = end
            if end:
                self.damage.append(Damage("torn", 0, end))
        else:
            self.damage.append(Damage("header", 0, self.offset))
        return None

    def _frame_at(self, offset: int, end: int) -> tuple[Frame, int] | None:
        payload = self._payload_at(offset, end)
        found = None if payload is None else read_frame(payload)
        # Sequences only grow: bytes that look like a frame inside another frame's text do not pass for the next one.
        if payload is None or found is None or (self.last is not None and found[0].sequence <= self.last):
            return None
        self.rejections.extend(found[1])
        return found[0], len(payload)

    def _candidate(self, offset: int, end: int) -> int:
        """Return the first position from `offset` on where a frame may begin, `end` when there is none."""
        position = offset + RECORD.size + 1
        while position < end:
            data = self._bytes(position, min(_CHUNK, end - position))
            if (found := data.find(_MARK)) >= 0:
                return position + found - RECORD.size - 1
            # Keep what may be the beginning of a mark that the chunk cut in two.
            position += max(1, len(data) - len(_MARK) + 1)
        return end

    def _payload_at(self, offset: int, end: int) -> bytes | None:
        """Return the payload of the record at an offset, or None where there is no whole record."""
        if end - offset <= RECORD.size:
            return None
        length, checksum = RECORD.unpack(self._bytes(offset, RECORD.size).ljust(RECORD.size, b"\0"))
        if not 0 < length <= min(MAX_FRAME, end - offset - RECORD.size):
            return None
        payload = self._bytes(offset + RECORD.size, length)
        return payload if zlib.crc32(payload) == checksum else None

    def _bytes(self, offset: int, size: int) -> bytes:
        first = offset - self._start
        if not 0 <= first <= first + size <= len(self._buffer):
            self._buffer = self._disk.read(self._fd, max(size, _CHUNK), offset)
            self._start, first = offset, 0
        return self._buffer[first : first + size]
