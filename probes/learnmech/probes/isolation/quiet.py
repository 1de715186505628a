"""Log records, printed lines and warnings of a replay: the training wrote them already, so they are dropped.

Dropped are those of the measuring thread while it measures, backward passes that compute activations again included.
Our own loggers get through. `logging.disable` would silence the other threads as well. A warning that was dropped does
not count as shown.
"""

import builtins
import io
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from learnmech.probes.isolation.doors import Doors, Place
from learnmech.probes.isolation.outward import stop
from learnmech.probes.isolation.warned import Ignored

OWN = "learnmech"
"""The logger whose children report what became of a measurement."""


class _State(threading.local):
    """How many measurements this thread is in."""

    depth: int = 0


_state = _State()


def is_screen(stream: object) -> bool:
    """Tell whether what is written to `stream` is only read: a line printed twice harms nothing."""
    return any(stream is screen for screen in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__))


class _Measuring:
    """Matches the warnings of a thread that measures."""

    def match(self, _: str, /) -> bool:
        """Tell whether this thread measures."""
        return _state.depth > 0


def _handling(original: Any) -> Any:
    @wraps(original)
    def handle(logger: logging.Logger, record: logging.LogRecord) -> Any:
        if _state.depth and record.name.partition(".")[0] != OWN:
            return None
        return original(logger, record)

    return handle


def _printing(original: Any) -> Any:
    @wraps(original)
    def printed(*values: Any, **how: Any) -> Any:
        file = how.get("file")
        if _state.depth:
            if file is None or is_screen(file):
                return None
            if isinstance(file, io.TextIOWrapper):
                stop("prints to a file")
        return original(*values, **how)

    return printed


def _places() -> Iterator[Place]:
    yield logging.Logger, "handle", _handling
    yield builtins, "print", _printing


_doors = Doors(_places)


@contextmanager
def quiet() -> Iterator[None]:
    """Drop what this thread logs or prints, and what it is warned of."""
    ignored = Ignored(_Measuring())
    _state.depth += 1
    try:
        with _doors.guarded():
            yield
    finally:
        _state.depth -= 1
        ignored.remove()
