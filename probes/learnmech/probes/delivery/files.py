"""The sink `spool:FOLDER`: everything stays on disk until `learnmech collect --ingest FOLDER` reads it."""

import time

from learnmech.probes.delivery.lock import WriterLock
from learnmech.sinks import Unavailable
from learnmech.sinks.address import spool_folder
from learnmech.wire import Ack, Batch, encode
from learnmech.wire.segments import SegmentHeader, SegmentWriter
from learnmech.wire.spool import LOCK, segment_path, segments


class SpoolSink:
    """Writes batches as segments.

    An `Outbox` with such a sink makes FOLDER its spool and delivers nothing, so nothing is written twice; this class is
    for whoever has batches in hand.

    Attributes:
        folder: The spool.
    """

    def __init__(self, url: str) -> None:
        self.folder = spool_folder(url).absolute()

    def deliver(self, batch: Batch) -> Ack:
        """Append the batch's frames to its writer's folder, one segment for each batch.

        Raises:
            Unavailable: The folder cannot be written, or its writer is alive and writes there itself.
        """
        count = sum(len(frame.measurements) for frame in batch.frames)
        last = batch.frames[-1].sequence if batch.frames else -1
        try:
            if batch.frames:
                self._write(batch)
        except OSError as error:
            raise Unavailable(f"cannot write to {self.folder}: {error.strerror or error}") from error
        return Ack(accepted=count, duplicates=0, rejected=[], last_sequence=last, server_time=time.time())

    def close(self) -> None:
        """Nothing is held open."""

    def _write(self, batch: Batch) -> None:
        folder = self.folder / batch.run.id / batch.writer
        folder.mkdir(parents=True, exist_ok=True)
        lock = folder / LOCK
        owner = WriterLock.adopt(lock) if lock.exists() else WriterLock.create(lock)
        if owner is None:
            raise Unavailable(f"{folder} belongs to a process that is alive")
        try:
            present = segments(folder)
            index = int(present[-1].stem) + 1 if present else 0
            header = SegmentHeader(
                run=batch.run,
                attempt=batch.attempt,
                start_step=batch.start_step,
                writer=batch.writer,
                rank=batch.rank,
                sink=f"spool:{self.folder}",
                first_sequence=batch.frames[0].sequence,
                created=time.time(),
                lineage=batch.lineage,
            )
            writer = SegmentWriter(segment_path(folder, index), header)
            try:
                for frame in batch.frames:
                    writer.append(encode(frame))
                writer.sync()
            finally:
                writer.close()
        finally:
            owner.release()
