"""What the engine writes to: frames by step, to an outbox that never raises, or to nothing at all."""

import logging
import time
from collections.abc import Sequence
from typing import Any, Literal, Protocol

from learnmech.probes.logs import Logs
from learnmech.wire import Event, Measurement

logger = logging.getLogger("learnmech.probes")


class Mailbox(Protocol):
    """The part of an outbox that the engine uses; see `learnmech.probes.delivery.Outbox`."""

    def put(
        self,
        step: int,
        measurements: Sequence[Measurement] = (),
        events: Sequence[Event] = (),
        *,
        samples: int | None = None,
        tokens: int | None = None,
    ) -> None:
        """Take one frame."""

    def close(self, timeout: float = 5.0) -> None:
        """Deliver what is left, for at most `timeout` seconds."""


class Nowhere:
    """A mailbox that keeps nothing: for dry runs, and for ranks that do not write."""

    def put(
        self,
        step: int,
        measurements: Sequence[Measurement] = (),
        events: Sequence[Event] = (),
        *,
        samples: int | None = None,
        tokens: int | None = None,
    ) -> None:
        """Forget the frame."""

    def close(self, timeout: float = 5.0) -> None:
        """Do nothing."""


class Writer:
    """Gathers what belongs to one step into as few frames as possible, with the progress of the run on each.

    Args:
        mailbox: Where frames go.
        tokens_per_sample: Tokens in one example, None if the run does not count tokens.
        samples: Examples seen before this attempt.
        logs: Where numbers go besides; None: nowhere.

    Attributes:
        pending: What has been gathered since the last `flush`.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        tokens_per_sample: int | None = None,
        samples: int = 0,
        logs: Logs | None = None,
    ) -> None:
        self._mailbox = mailbox
        self._logs = logs
        self._tokens_per_sample = tokens_per_sample
        self.pending: dict[tuple[int, int | None], tuple[list[Measurement], list[Event]]] = {}
        self.samples = samples
        self._ended = False
        self.counts_samples = True
        """False once a batch came whose examples cannot be counted."""

    @property
    def seen(self) -> int | None:
        """Examples seen so far, None where they cannot be counted."""
        return self.samples if self.counts_samples else None

    def count(self, examples: int | None) -> None:
        """Add the examples of one update."""
        if examples is None:
            self.counts_samples = False
        else:
            self.samples += examples

    def add(self, step: int, measurements: Sequence[Measurement] = (), seen: int | None = None) -> None:
        """Gather measurements of a step.

        Args:
            step: The step.
            measurements: The measurements.
            seen: Examples seen at that step; None for now.
        """
        if measurements:
            self._entry(step, seen)[0].extend(measurements)

    def tell(
        self,
        kind: str,
        step: int,
        message: str,
        severity: Literal["info", "warning", "error"] = "info",
        **data: Any,
    ) -> None:
        """Gather an event."""
        self._ended |= kind in ("run_finished", "run_failed")
        event = Event(kind, step, time.time(), message[:2000], severity, data)
        self._entry(step, None)[1].append(event)

    def _entry(self, step: int, seen: int | None) -> tuple[list[Measurement], list[Event]]:
        return self.pending.setdefault((step, self.seen if seen is None else seen), ([], []))

    def flush(self) -> None:
        """Hand everything gathered to the mailbox."""
        if not self.pending:
            return
        pending, self.pending = self.pending, {}
        for (step, seen), (measurements, events) in pending.items():
            self._put(step, seen, measurements, events)
            if self._logs is not None:
                self._logs.tell(step, measurements)

    def _put(self, step: int, seen: int | None, measurements: Sequence[Measurement], events: Sequence[Event]) -> None:
        tokens = None if seen is None or self._tokens_per_sample is None else seen * self._tokens_per_sample
        self._mailbox.put(step, measurements, events, samples=seen, tokens=tokens)

    def close(self, timeout: float) -> None:
        """Hand everything over and wait for its delivery for a bounded time."""
        deadline = time.monotonic() + timeout
        self.flush()
        if self._logs is not None:
            self._logs.end()
        self._mailbox.close(timeout)
        if self._logs is not None:
            self._logs.wait(max(deadline - time.monotonic(), 0.0))

    def fail(self, step: int, message: str, timeout: float) -> None:
        """End in another thread than the training's, which may be stopped anywhere, in here too: no log, no device.

        Args:
            step: The step.
            message: What to say of it.
            timeout: Seconds to wait for delivery.
        """
        pending, self.pending = self.pending, {}
        for (at, seen), (measurements, events) in list(pending.items()):
            self._put(at, seen, measurements, events)
        if not self._ended:
            self._put(step, self.seen, (), [Event("run_failed", step, time.time(), message, "error", {})])
        self._mailbox.close(timeout)
