"""Measurements for whatever logger the trainer has: the numbers alone; error bars and reasons are in the store.

Loggers are slow at times, and fail at times; neither is the training's business. A function is called in a thread of
its own. The loggers of a trainer belong to its main thread: they are called there, as seldom as the budget demands.
"""

import contextlib
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from learnmech.observables import Status
from learnmech.wire import Measurement

Log = Callable[[dict[str, float], int], None]
"""Logs values by name at a step."""

PREFIX = "learnmech/"

LIMIT = 3
"""Failures in a row after which a logger is left alone, as a probe is: fewer may be a network's hiccup."""

SHARE = 0.01
"""Share of the time where the run has no budget, which is the probes': the default budget."""

WAITING = 256
"""Steps that wait for a slow function: what one that takes 20 ms has done in the 5 seconds at the end of a run."""

INTERVAL = 1.0
"""Seconds between calls of a trainer's loggers at least: people do not read faster."""

logger = logging.getLogger("learnmech.probes")


class Logs:
    """Passes measurements on, until that has failed three times in a row.

    Args:
        log: `log(values, step)`.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._failures = 0

    def tell(self, step: int, measurements: Sequence[Measurement]) -> None:
        """Log what can be trusted of the measurements of a step: finite, with status `ok`."""
        values = {
            PREFIX + (f"{m.observable}/{m.scope}" if m.scope else m.observable): m.value
            for m in measurements
            if m.value is not None and m.status is Status.OK and math.isfinite(m.value)
        }
        if values and self._failures < LIMIT:
            self._take(step, values)

    def _take(self, step: int, values: dict[str, float]) -> None:
        raise NotImplementedError(f"{type(self).__name__} does not define _take(step, values)")

    def _pass_on(self, step: int, values: dict[str, float]) -> None:
        if self._failures >= LIMIT:
            return
        try:
            self._log(values, step)
        except Exception as error:  # noqa: BLE001 (a logger may raise anything)
            self._failures += 1
            if self._failures == LIMIT:
                logger.warning("learnmech cannot log to the trainer's loggers and stops trying: %r", error)
        else:
            self._failures = 0

    def end(self) -> None:
        """Take nothing more until the next `tell`."""

    def wait(self, timeout: float) -> None:
        """Wait until everything is logged, for so many seconds at most."""


class Behind(Logs):
    """Logs in a thread of its own, step by step; where that is too slow, the oldest steps that wait are dropped.

    Args:
        log: `log(values, step)`.
    """

    def __init__(self, log: Log) -> None:
        super().__init__(log)
        self._thread: threading.Thread | None = None
        self._begin()

    def _begin(self) -> None:
        self._queue: queue.SimpleQueue[tuple[int, dict[str, float]] | None] = queue.SimpleQueue()
        self._dropped = 0
        self._failures = 0

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind whatever belongs to this process."""
        return {"_log": self._log, "_thread": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin as if new."""
        self.__dict__.update(state)
        self._begin()

    def _take(self, step: int, values: dict[str, float]) -> None:
        if self._thread is None or not self._thread.is_alive():  # not in the child of a fork
            self._begin()
            self._thread = threading.Thread(target=self._work, args=(self._queue,), name="learnmech-log", daemon=True)
            self._thread.start()
        if self._queue.qsize() >= WAITING:
            self._drop()
        self._queue.put((step, values))

    def _drop(self) -> None:
        with contextlib.suppress(queue.Empty):
            self._queue.get_nowait()
            self._dropped += 1

    def _work(self, waiting: "queue.SimpleQueue[tuple[int, dict[str, float]] | None]") -> None:
        while (found := waiting.get()) is not None:
            self._pass_on(*found)

    def end(self) -> None:
        """Let the thread end after what waits."""
        if self._thread is not None:
            self._queue.put(None)

    def wait(self, timeout: float) -> None:
        """Wait for the thread, for so many seconds at most, and drop what it has not logged by then."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        thread.join(timeout)
        with contextlib.suppress(queue.Empty):
            while thread.is_alive():
                self._dropped += self._queue.get_nowait() is not None
        self._queue.put(None)
        if self._dropped:
            logger.warning(
                "log= was too slow: learnmech did not pass on %d steps, the oldest that waited", self._dropped
            )
        self._begin()  # another run may come


class Paced(Logs):
    """Logs in the thread of the training: at most once a second, and never for more than a share of the time.

    Of each number it logs the newest value, at its own step.

    Args:
        log: `log(values, step)`.
        share: Share of the time that it may take: after a call it is silent until the call has been earned. 0: `SHARE`.
    """

    def __init__(self, log: Log, share: float) -> None:
        super().__init__(log)
        self._share = share or SHARE
        self._waiting: dict[str, tuple[int, float]] = {}
        self._next = -math.inf

    def _take(self, step: int, values: dict[str, float]) -> None:
        self._waiting |= {name: (step, value) for name, value in values.items()}
        if time.perf_counter() >= self._next:
            self._say()

    def _say(self) -> None:
        waiting, self._waiting = self._waiting, {}
        begin = time.perf_counter()
        for step in sorted({step for step, _ in waiting.values()}):
            self._pass_on(step, {name: value for name, (at, value) in waiting.items() if at == step})
        spent = time.perf_counter() - begin
        self._next = begin + max(INTERVAL, spent / self._share)

    def end(self) -> None:
        """Log what waits."""
        self._say()


def checked_log(log: bool | Log) -> bool | Log:
    """Return what a callback is given as `log`.

    Raises:
        TypeError: It is neither a boolean nor a function.
    """
    if not isinstance(log, bool) and not callable(log):
        raise TypeError(f"log is {log!r}; expected True for the trainer's loggers, or a function log(values, step)")
    return log


def logs_of(log: Log | Logs | None) -> Logs | None:
    """Return what passes numbers on to a function, in a thread of its own.

    Raises:
        TypeError: `log` is no function.
    """
    if log is None or isinstance(log, Logs):
        return log
    if not callable(log):
        raise TypeError(f"log is {log!r}; expected a function log(values, step), such as logger.log_metrics")
    return Behind(log)
