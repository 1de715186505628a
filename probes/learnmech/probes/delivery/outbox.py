"""The outbox: what the recorder writes to. It never raises, waits for no network, and survives forks and pickles."""

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from learnmech.probes.delivery.courier import Courier
from learnmech.probes.delivery.lifetimes import LIFETIMES
from learnmech.probes.delivery.mending import put_mended
from learnmech.probes.delivery.notices import Notices
from learnmech.probes.delivery.spool import Spool
from learnmech.sinks import Sink, SinkError, identity, resolve
from learnmech.sinks.address import scheme, spool_folder
from learnmech.wire import Event, Lineage, Measurement, RunInfo
from learnmech.wire.disk import DISK, Disk
from learnmech.wire.segments import MAX_AGE, SegmentHeader

SPOOL = "LEARNMECH_SPOOL"
"""Environment variable with the spool's folder; without it `.learnmech/spool` where the trainer was started."""
LIMIT = 1 << 30
"""Bytes of spool for one process: years of a quiet run, or a day of a very chatty one, without a collector."""


@dataclass(frozen=True, slots=True)
class Report:
    """How delivery stands.

    Attributes:
        written: Frames put so far.
        delivered: Frames that the sink acknowledged, by this process, leftovers of earlier ones included.
        on_disk: Bytes of spool that wait.
        in_memory: Bytes that wait in memory because the disk fails.
        lost: Frames given up because space ran out or the disk damaged them; each gap is an event in the run.
        error: Why the last delivery failed, '' when it did not.
    """

    written: int
    delivered: int
    on_disk: int
    in_memory: int
    lost: int
    error: str


class Outbox:
    """Takes measurements from the training thread, and gets them to the sink, now or later.

    `put` returns when the frame is in a file: a process killed after that has lost nothing. A background thread
    delivers. The constructor opens nothing and holds plain values only, so that whoever holds an outbox can be copied,
    pickled and sent to another process, which then writes under a name of its own.
    """

    def __init__(
        self,
        run: RunInfo,
        *,
        sink: str,
        attempt: int = 0,
        start_step: int = 0,
        rank: int = 0,
        lineage: Lineage | None = None,
        spool: Path | None = None,
        limit_bytes: int = LIMIT,
        open_sink: Callable[[str], Sink] = resolve,
        disk: Disk = DISK,
        max_age: float = MAX_AGE,
        answer: Callable[[], None] | None = None,
    ) -> None:
        """Note what to do; nothing is opened.

        Args:
            run: The run.
            sink: URL of where it goes. What is wrong with it is said once, in the log, and never raised.
            attempt: 0 for the first start, for a resume one more than the attempt that it goes on from.
            start_step: Step at which the attempt begins.
            rank: Distributed rank of this process.
            lineage: Tells attempts of the same number apart; the same for all outboxes of an attempt.
            spool: The spool's folder; None for the environment's or the default.
            limit_bytes: Bytes of spool at most; `spool:` sinks, whose purpose is to keep, have no bound.
            open_sink: Turns the URL into a sink.
            disk: The file system.
            max_age: Seconds after which a segment is closed.
            answer: Called, in a thread of its own, when somebody asks this run for a measurement at its sink. Stays
                behind when the outbox is copied or pickled: a copy has nobody who listens.
        """
        self._run = run
        self._url = sink
        self._attempt = attempt
        self._start_step = start_step
        self._rank = rank
        self._lineage = lineage
        self._folder = spool
        self._limit = limit_bytes
        self._open_sink = open_sink
        self._disk = disk
        self._max_age = max_age
        self._answer = answer
        self._closed = False
        self._reset()

    def start(self) -> None:
        """Open the spool and start delivering; `put` does it if nobody did."""
        if self._spool is not None or self._closed:
            return
        try:
            with LIFETIMES.starting:
                if self._spool is None:
                    self._start()
        except Exception as error:  # noqa: BLE001 (delivery must never stop training)
            self._notices.note("start", f"measurements cannot be delivered: {error!r}")
        self._notices.write()

    def put(
        self,
        step: int,
        measurements: Sequence[Measurement] = (),
        events: Sequence[Event] = (),
        *,
        samples: int | None = None,
        tokens: int | None = None,
    ) -> None:
        """Write one frame to the spool; durable against the death of this process when it returns.

        Args:
            step: Optimizer updates already done at the weights that were measured.
            measurements: What was measured.
            events: What happened.
            samples: Examples seen so far.
            tokens: Tokens seen so far.
        """
        if self._spool is None:
            self.start()
        spool = self._spool
        if spool is None:
            return
        try:
            spool.put(step, measurements, events, samples, tokens)
        except Exception as error:  # noqa: BLE001 (whatever is wrong with a measurement, training goes on)
            counts = (samples, tokens)
            put_mended(spool, self._notices, error, step=step, measurements=measurements, events=events, counts=counts)
        if self._notices.waiting:
            self._notices.write()

    def flush(self, timeout: float) -> bool:
        """Wait until everything put so far is acknowledged (for a `spool:` sink: synced), at most so many seconds.

        Returns:
            Whether it is. False comes early when only a person can help: no such sink, or a wrong token.
        """
        courier, spool = self._courier, self._spool
        if courier is None or spool is None:
            return True
        try:
            return courier.flush(spool.written, timeout)
        finally:
            self._notices.write()

    def close(self, timeout: float = 5.0) -> None:
        """Deliver what is there, at most so many seconds, and end; the rest is delivered by the next process."""
        courier, spool = self._courier, self._spool
        already, self._closed = self._closed, True
        LIFETIMES.discard(self)
        if already or courier is None or spool is None:
            return
        try:
            deadline = time.monotonic() + timeout
            courier.deafen()
            if spool.gaps:
                spool.put(spool.last_step, (), (), None, None)
            courier.flush(spool.written, timeout)
            if not courier.stop(max(0.0, deadline - time.monotonic())):
                self._notices.note("slow", f"the sink did not answer in time; what is left waits in {spool.folder}")
        except Exception as error:  # noqa: BLE001 (the end of a training is no place to fail)
            self._notices.note("close", f"while closing the spool: {error!r}")
        finally:
            self._notices.write()

    def leave(self) -> None:
        """In the child of a fork: the spool and the thread are the parent's; a `put` here opens a spool of its own."""
        LIFETIMES.inherit(self._spool, self._courier, self._notices)
        if self._courier is not None:
            self._courier.leave()
        self._answer = None
        self._reset()

    def report(self) -> Report:
        """Return how delivery stands."""
        spool, courier = self._spool, self._courier
        if spool is None or courier is None:
            return Report(0, 0, 0, 0, 0, "")
        on_disk, in_memory = spool.waiting()
        return Report(spool.next, courier.delivered, on_disk, in_memory, spool.gaps.frames, courier.error)

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind whatever belongs to this process."""
        live = {"_spool", "_courier", "_notices", "_answer"}
        return {key: value for key, value in self.__dict__.items() if key not in live}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin as if new, closed if it was."""
        self.__dict__.update(state)
        self._answer = None
        self._reset()

    def _reset(self) -> None:
        self._spool: Spool | None = None
        self._courier: Courier | None = None
        self._notices = Notices()

    def _start(self) -> None:
        # Ctrl-C may come between any two lines: the next call goes on from what is there, and starts nothing twice.
        if self._courier is None:
            self._courier = self._prepare()
        LIFETIMES.add(self)
        try:
            self._courier.begin()
        finally:
            self._spool = self._courier.spool

    def _prepare(self) -> Courier:
        keeps, name = False, ""
        # What is wrong with the URL is said by whoever opens it.
        with contextlib.suppress(SinkError):
            name = identity(self._url)
            keeps = scheme(self._url) == "spool"
        root = spool_folder(self._url) if keeps else self._folder or Path(os.environ.get(SPOOL) or ".learnmech/spool")
        root = root.expanduser().absolute()
        header = SegmentHeader(
            run=self._run,
            attempt=self._attempt,
            start_step=self._start_step,
            writer=uuid.uuid4().hex,
            rank=self._rank,
            sink=name,
            lineage=self._lineage or msgspec.UNSET,
        )
        limit = None if keeps else self._limit
        spool = Spool(root, header, self._notices, limit_bytes=limit, disk=self._disk, max_age=self._max_age)
        return Courier(
            spool,
            root,
            self._url,
            self._notices,
            sink=name or "the sink",
            resolve=None if keeps else self._open_sink,
            limit_bytes=limit,
            disk=self._disk,
            answer=self._answer,
        )
