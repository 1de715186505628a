"""What a sink does, and the three ways in which it may say no."""

from typing import Protocol

from learnmech.wire import Ack, Batch


class Sink(Protocol):
    """Takes batches. Called from one background thread at a time, never from the training thread."""

    def deliver(self, batch: Batch) -> Ack:
        """Hand over one batch and wait until it is safe at the other side.

        Delivering a batch twice must be harmless: after a lost answer the same batch comes again.

        Returns:
            The answer, given only after the batch was committed.

        Raises:
            Unavailable: Try again later; the sender keeps the batch.
            Refused: This batch will never be taken; the sender sets it aside and goes on.
        """
        ...

    def close(self) -> None:
        """Let go of connections. Called once, from the thread that delivered."""


class Unavailable(Exception):
    """The other side cannot take the batch now; everything stays in the spool.

    Attributes:
        retry_after: Seconds that the other side asked to be left alone, where it did.
    """

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class Unauthorized(Unavailable):
    """The token is missing, wrong or not allowed to write: a person has to act, so the sender retries slowly."""


class Refused(Exception):
    """The other side understood this batch and will never take it."""

    permanent = True


class SinkError(ValueError):
    """The URL names no sink. `str()` says what came, what was expected and what to type instead."""


class SinkMissing(SinkError):
    """The URL is well formed, but what it needs is not installed here. `str()` says what to install."""
