"""What the collector refused or the disk damaged: kept beside the spool, so that nothing vanishes without a trace."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from learnmech.probes.delivery.notices import Notices
from learnmech.wire import Batch, Measurement, Rejection, encode
from learnmech.wire.disk import DISK, Disk
from learnmech.wire.segments import Damage, SegmentHeader, SegmentWriter
from learnmech.wire.spool import REJECTED, segment_path

REASONS = "reasons.jsonl"


class Quarantine:
    """The `rejected` folder of one writer.

    Refused frames lie there as segments, so `learnmech collect --ingest FOLDER/rejected` can take them after all; one
    line of `reasons.jsonl` for each case says what happened. Nothing here raises: a folder that cannot be written costs
    a notice.
    """

    def __init__(
        self, writer_folder: Path, notices: Notices, limit_bytes: int | None = None, disk: Disk = DISK
    ) -> None:
        """Prepare; the folder is made when something is kept.

        Args:
            writer_folder: The writer's folder in the spool.
            notices: Where to say that something was kept.
            limit_bytes: Bytes to keep at most; beyond it only the notice remains. None keeps everything.
            disk: The file system.
        """
        self.folder = writer_folder / REJECTED
        self._notices = notices
        self._limit = limit_bytes
        self._disk = disk
        self._used: int | None = None

    def batch(self, header: SegmentHeader, batch: Batch, reason: str) -> None:
        """Keep the frames of a batch that will never be taken."""
        if not batch.frames:
            self._notices.note("refused", f"the collector refused a heartbeat of run {batch.run.name}: {reason}")
            return
        first, last = batch.frames[0].sequence, batch.frames[-1].sequence
        self._notices.note(
            "refused",
            f"the collector refused {len(batch.frames)} frames of run {batch.run.name} (steps {batch.frames[0].step} "
            f"to {batch.frames[-1].step}): {reason}. They are kept in {self.folder}; later refusals are kept silently",
        )
        payloads = [encode(frame) for frame in batch.frames]
        try:
            if not self._room(sum(map(len, payloads))):
                return
            path = segment_path(self.folder, first)
            # Left by a process that was killed before it could forget these frames.
            self._disk.remove(path)
            writer = SegmentWriter(path, msgspec.structs.replace(header, first_sequence=first), self._disk)
            try:
                for payload in payloads:
                    writer.append(payload)
                writer.sync()
            finally:
                writer.close()
            self._line({"refused": [first, last], "reason": reason})
        except OSError as error:
            self._failed(error)

    def measurements(self, batch: Batch, rejections: Sequence[Rejection]) -> None:
        """Keep single measurements that the store did not take."""
        by_sequence = {frame.sequence: frame.measurements for frame in batch.frames}
        for rejection in rejections:
            found = by_sequence.get(rejection.sequence, [])
            whole = found[rejection.index] if 0 <= rejection.index < len(found) else None
            self.measurement(rejection, whole)

    def measurement(self, rejection: Rejection, whole: Measurement | None = None) -> None:
        """Keep one measurement, as far as it can be had, with the reason."""
        self._notices.note(
            f"rejected {rejection.observable}",
            f"a measurement of {rejection.observable!r} was not taken: {rejection.reason}. It is kept in "
            f"{self.folder / REASONS}; later ones of this observable are kept silently",
        )
        entry: dict[str, object] = {"rejected": rejection.observable, "sequence": rejection.sequence}
        entry |= {"index": rejection.index, "reason": rejection.reason}
        if whole is not None:
            entry["measurement"] = json.loads(encode(whole, "json"))
        try:
            if self._room(0):
                self._line(entry)
        except OSError as error:
            self._failed(error)

    def segment(self, path: Path, damage: Sequence[Damage]) -> bool:
        """Move a damaged segment here and say what it lacks; False when it could not be moved."""
        worst = "; ".join(f"{item.size} bytes {item.kind} at {item.offset}" for item in damage)
        self._notices.note(
            f"damage {path}",
            f"a spool segment is damaged ({worst}); its readable frames are delivered, the file is kept "
            f"in {self.folder}",
        )
        try:
            self._room(0)
            self._disk.move(path, self.folder / f"{path.stem}.damaged")
            self._line({"damaged": path.name, "damage": [msgspec.to_builtins(item) for item in damage]})
        except OSError as error:
            self._failed(error)
            return False
        return True

    def _room(self, more: int) -> bool:
        self._disk.make_folder(self.folder)
        if self._used is None:
            self._used = sum(entry.stat().st_size for entry in self.folder.iterdir())
        if self._limit is not None and self._used + more > self._limit:
            self._notices.note(
                "rejected full", f"{self.folder} holds {self._used} bytes, its limit; refused frames are no longer kept"
            )
            return False
        self._used += more
        return True

    def _line(self, entry: dict[str, object]) -> None:
        line = json.dumps({"time": time.time(), **entry}) + "\n"
        with (self.folder / REASONS).open("a", encoding="utf-8") as file:
            file.write(line)
        self._used = (self._used or 0) + len(line)

    def _failed(self, error: OSError) -> None:
        self._notices.note("rejected failed", f"cannot keep what was refused in {self.folder}: {error}")
