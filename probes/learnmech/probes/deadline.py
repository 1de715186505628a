"""The watchdog: a measurement that takes far too long is broken off at its next evaluation of the loss."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

LEAST = 60.0
"""Seconds that a measurement may always take."""
STEPS = 1000
"""Training steps' worth of time that a measurement may take, where that is more: the dearest probe, five eigenvalues
from a cold start, takes 150."""

_ends: ContextVar[float] = ContextVar("learnmech_deadline", default=float("inf"))


class TookTooLong(TimeoutError):
    """A measurement has not come to an end in time."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Break off what runs inside, at the first `check` after so many seconds.

    Args:
        seconds: Time that it may take.

    Yields:
        Nothing.
    """
    token = _ends.set(min(_ends.get(), time.perf_counter() + seconds))  # an outer end is not put off
    try:
        yield
    finally:
        _ends.reset(token)


def check() -> None:
    """Go on, if there is time left; called before each evaluation of a loss and each product with a matrix.

    Raises:
        TookTooLong: There is none.
    """
    late = time.perf_counter() - _ends.get()
    if late > 0:
        raise TookTooLong(f"the measurement was broken off {late:.1f} s after the time it may take")
