"""Log records and printed lines of a replay: the training wrote them already, so they are dropped.

Dropped are those of the measuring thread while it measures, backward passes that compute activations again included.
Our own loggers get through. `logging.disable` would silence the other threads as well.
"""

import builtins
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from learnmech.probes.isolation.doors import Doors, Place

OWN = "learnmech"
"""The logger whose children report what became of a measurement."""


class _State(threading.local):
    """How many measurements this thread is in."""

    depth: int = 0


_state = _State()


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
        if _state.depth and (file is None or file is sys.stdout or file is sys.stderr):
            return None
        return original(*values, **how)

    return printed


def _places() -> Iterator[Place]:
    yield logging.Logger, "handle", _handling
    yield builtins, "print", _printing


_doors = Doors(_places)


@contextmanager
def quiet() -> Iterator[None]:
    """Drop what this thread logs or prints."""
    _state.depth += 1
    try:
        with _doors.guarded():
            yield
    finally:
        _state.depth -= 1
