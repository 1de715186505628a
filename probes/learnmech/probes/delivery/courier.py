"""The background thread: reads the spool, delivers, retries, cleans up. Nothing it meets reaches the training."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from learnmech.probes.delivery import leftovers
from learnmech.probes.delivery.asked import Asked
from learnmech.probes.delivery.backoff import Backoff
from learnmech.probes.delivery.notices import Notices
from learnmech.probes.delivery.quarantine import Quarantine
from learnmech.probes.delivery.sources import OwnSource, Source
from learnmech.probes.delivery.spool import Spool
from learnmech.sinks import Refused, Sink, SinkError, Unauthorized, Unavailable
from learnmech.wire import Batch
from learnmech.wire.disk import DISK, Disk
from learnmech.wire.spool import batch_of

TICK = 0.25
"""Seconds between looks at the spool: what is put is on its way within this time, and `put` need not wake anybody."""
SYNC = 1.0
"""Seconds between syncs: what a power cut may take."""
HEARTBEAT = 15.0
"""Seconds of silence after which a run says that it is alive."""
LISTEN = 5.0
"""The same for a run that listens for requests to measure: somebody waits. A heartbeat is 0.3 ms of CPU time here."""
ADOPT = 60.0
"""Seconds between looks for what dead processes left."""
IDLE_SHARE = 4.0
"""Rest after a batch of a backlog, as a multiple of its CPU time: the interpreter's lock is the training's first."""
SLOW = 30.0
"""Least seconds between tries where a person has to act first."""


class Courier:
    """Delivers one process's spool.

    Attributes:
        spool: What is delivered.
        delivered: Frames acknowledged.
        error: Why the last delivery failed, '' when it did not.
        hopeless: Whether only a person can help, so that nobody should wait for it.
    """

    def __init__(
        self,
        spool: Spool,
        root: Path,
        url: str,
        notices: Notices,
        *,
        sink: str,
        resolve: Callable[[str], Sink] | None,
        limit_bytes: int | None,
        disk: Disk = DISK,
        answer: Callable[[], None] | None = None,
    ) -> None:
        """Prepare the thread.

        Args:
            spool: What to deliver.
            root: The spool folder, in which others may have left something.
            url: The sink, perhaps with a token in it.
            notices: Where to put messages for people.
            sink: Its identity, which may be printed.
            resolve: Opens the sink; None when everything is to stay in the spool.
            limit_bytes: Bound of the spool.
            disk: The file system.
            answer: Called, in the thread, when the sink's answer says that a measurement was asked for.
        """
        self._thread = threading.Thread(target=self._run, name="learnmech-courier", daemon=True)
        self.delivered = 0
        self.error = ""
        self.hopeless = False
        self.spool = spool
        self._root = root
        self._url = url
        self._address = sink
        self._notices = notices
        self._resolve = resolve
        self._keeps = resolve is None
        self._begun = False
        self._disk = disk
        quarantine = Quarantine(spool.folder, notices, None if limit_bytes is None else limit_bytes // 8, disk)
        self._own = OwnSource(spool, notices, quarantine, disk)
        self._left: leftovers.LeftSource | None = None
        self._asked = Asked(answer, notices)
        self._sink: Sink | None = None
        self._backoff = Backoff()
        self._wake = threading.Event()
        self._progress = threading.Condition()
        self._urgent = False
        self._stop_at: float | None = None
        now = time.monotonic()
        self._last_sync = self._last_touch = self._last_contact = now
        self._last_look = now - ADOPT

    # --- the training thread -----------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start the thread, once."""
        if not self._begun:
            self._begun = True
            self._thread.start()

    def flush(self, sequence: int, timeout: float) -> bool:
        """Wait until every frame up to `sequence` is settled, at most so many seconds."""
        deadline = time.monotonic() + timeout
        with self._progress:
            self._urgent = True
            self._wake.set()
            while self._own.acked < sequence and self._thread.is_alive() and not self._resigned():
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    break
                # The thread notifies; the bound is for a thread that died.
                self._progress.wait(min(remaining, 1.0))
            return self._own.acked >= sequence

    def deafen(self) -> None:
        """Pass no request on any more."""
        self._asked.deafen()

    def stop(self, timeout: float) -> bool:
        """End the thread, after delivering for at most so many seconds; False when it is still in a call."""
        if self._thread.ident is None:
            # It could not be started; there is nobody else to give the files back.
            self._end()
            return True
        self._stop_at = time.monotonic() + timeout
        self._urgent = True
        self._wake.set()
        self._thread.join(timeout + 0.2)
        return not self._thread.is_alive()

    def leave(self) -> None:
        """In the child of a fork: close the copies of descriptors; this thread does not exist here."""
        self.spool.leave()
        if self._left is not None:
            self._left.leave()

    # --- the background thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Work until stopped."""
        try:
            while not self._over():
                busy, began = False, time.thread_time()
                try:
                    busy = self._work()
                except Exception as error:  # noqa: BLE001 (a bug here must not end the delivery of a whole run)
                    self._notices.note("courier", f"delivery met an unexpected error and goes on: {error!r}")
                    self._backoff.failed(least=1.0)
                if not busy:
                    self._wake.wait(TICK)
                elif not self._urgent and self._stop_at is None:
                    self._wake.wait(min(TICK, IDLE_SHARE * (time.thread_time() - began)))
                self._wake.clear()
        finally:
            self._end()

    def _over(self) -> bool:
        if self._stop_at is None:
            return False
        return time.monotonic() >= self._stop_at or self._own.acked >= self.spool.written or self._resigned()

    def _resigned(self) -> bool:
        return self.hopeless and not self._urgent

    def _work(self) -> bool:
        """Do what is due, and return whether there is more at once."""
        now = time.monotonic()
        urgent = self._urgent
        if now - self._last_sync >= SYNC or (urgent and self._keeps):
            self._last_sync = now
            synced = self.spool.keep_house()
            if self._keeps:
                # Nothing is delivered, so what is safe on disk is as far as it goes.
                self._own.acked = synced
        if now - self._last_touch >= HEARTBEAT:
            self._last_touch = now
            self.spool.touch()
            if self._left is not None:
                self._left.touch()
        self.spool.mend()
        if self._resolve is None or not (urgent or self._backoff.due()):
            return self._tell(urgent)
        busy = self._deliver_round()
        silence = min(HEARTBEAT, LISTEN) if self._asked.listens else HEARTBEAT
        if not busy and now - self._last_contact >= silence and self._backoff.failures == 0:
            self._beat()
        return self._tell(urgent and not busy) or busy

    def _tell(self, answered: bool) -> bool:
        """Let those who wait in `flush` look again."""
        with self._progress:
            if answered:
                self._urgent = False
            self._progress.notify_all()
        return False

    def _deliver_round(self) -> bool:
        """Offer one batch of every source; whether all was taken, so that the next may follow at once."""
        sources: list[Source] = [self._own]
        if (left := self._leftover()) is not None:
            sources.append(left)
        sent = False
        for source in sources:
            batch = source.batch()
            if batch is not None:
                if not self._send(batch, source):
                    return False
                sent = True
        return sent

    def _leftover(self) -> leftovers.LeftSource | None:
        now = time.monotonic()
        if self._left is not None and self._left.finished:  # where one left something, others may have too
            self._left, self._last_look = None, now - ADOPT
        if self._left is None and now - self._last_look >= ADOPT and self._stop_at is None:
            self._last_look = now
            self._left = leftovers.find(
                self._root,
                sink=self._address,
                run=self.spool.header.run.id,
                own=self.spool.folder,
                notices=self._notices,
                now=self.spool.touch() or None,
                disk=self._disk,
            )
        return self._left

    def _beat(self) -> None:
        self._send(msgspec.structs.replace(batch_of(self.spool.header, []), heartbeat=True), self._own)

    def _send(self, batch: Batch, source: Source) -> bool:
        """Deliver once; whether the batch is settled. It stays the same batch until it is."""
        try:
            if self._sink is None:
                self._sink = self._open()
            # The same frames every time, but a fresh time: the collector reads the clock's offset from it.
            ack = self._sink.deliver(msgspec.structs.replace(batch, sent=time.time()))
        except SinkError as error:
            self._resign(str(error))
            return False
        except Refused as error:
            source.quarantine.batch(source.header, batch, str(error))
            self.error = str(error)
        except Unauthorized as error:
            self.hopeless = True
            where = f"Nothing is lost: measurements stay in {self.spool.folder} until it is right"
            self._notices.note("unauthorized", f"{error}. {where}", logging.ERROR)
            self._failed(error, SLOW)
            return False
        except Exception as error:  # noqa: BLE001 (a sink may fail in any way; the spool keeps the batch)
            what = str(error) if isinstance(error, Unavailable) else f"{type(error).__name__}: {error}"
            self._notices.note(
                "unavailable",
                f"cannot deliver to {self._address}: {what}. Training goes on; what waits is in {self.spool.folder}",
            )
            self._failed(error)
            return False
        else:
            if source is self._own:
                self._asked.hear(ack)
            source.quarantine.measurements(batch, ack.rejected)
            self._notices.settle("unavailable", f"delivering to {self._address} again")
            self._notices.settle("unauthorized", f"{self._address} accepts our token again")
            self.delivered += len(batch.frames)
            self.error = ""
        self._last_contact = time.monotonic()
        self.hopeless = False
        self._backoff.succeeded()
        if not batch.heartbeat:
            source.settle()
        return True

    def _open(self) -> Sink:
        if self._resolve is None:
            raise Unavailable("delivery was given up")
        return self._resolve(self._url)

    def _failed(self, error: Exception, least: float = 0.0) -> None:
        self.error = str(error)
        self._backoff.failed(error.retry_after if isinstance(error, Unavailable) else None, least)
        self._tell(answered=True)

    def _resign(self, reason: str) -> None:
        """Stop delivering, as the sink does not exist here; the spool keeps everything for a later ingest."""
        self.error, self.hopeless, self._resolve = reason, True, None
        self._notices.note(
            "sink",
            f"{reason}. Training goes on; measurements are kept in {self._root}, and "
            f"`learnmech collect --ingest {self._root}` reads them later",
        )
        self._tell(answered=True)

    def _end(self) -> None:
        """Leave everything as the next process may find it."""
        # Looking for one more batch is what removes a segment that is closed and delivered.
        last_look = [self._own.batch] if self._resolve is not None else []
        left = [self._left.stop] if self._left is not None else []
        sink = [self._sink.close] if self._sink is not None else []
        for step in (self.spool.seal, *last_look, self._own.stop, self.spool.finish, *left, *sink):
            try:
                step()
            except Exception as error:  # noqa: BLE001 (each step on its own, whatever the one before it met)
                self._notices.note("end", f"while closing the spool and its sink: {error!r}")
        self._tell(answered=True)
