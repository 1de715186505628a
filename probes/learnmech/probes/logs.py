"""Measurements for whatever logger the trainer has: the numbers alone; error bars and reasons are in the store."""

import logging
import math
from collections.abc import Callable, Sequence

from learnmech.observables import Status
from learnmech.wire import Measurement

Log = Callable[[dict[str, float], int], None]
"""Logs values by name at a step."""

PREFIX = "learnmech/"

logger = logging.getLogger("learnmech.probes")


class Logs:
    """Passes measurements on, until that fails once.

    Args:
        log: `log(values, step)`.
        strict: True to raise what is otherwise reported; for tests.
    """

    def __init__(self, log: Log, *, strict: bool = False) -> None:
        self._log: Log | None = log
        self._strict = strict

    def tell(self, step: int, measurements: Sequence[Measurement]) -> None:
        """Log what can be trusted of the measurements of a step: finite, with status `ok`."""
        values = {
            PREFIX + (f"{m.observable}/{m.scope}" if m.scope else m.observable): m.value
            for m in measurements
            if m.value is not None and m.status is Status.OK and math.isfinite(m.value)
        }
        if self._log is None or not values:
            return
        try:
            self._log(values, step)
        except Exception as error:
            if self._strict:
                raise
            self._log = None
            logger.warning("learnmech cannot log to the trainer's loggers and stops trying: %r", error)
