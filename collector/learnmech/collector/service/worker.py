"""Judging in the background: after the acknowledgement, one run at a time, as often as needed and no oftener."""

import logging
import threading
import time
from collections.abc import Callable, Iterable

from learnmech.collector.store import StoreError

logger = logging.getLogger("learnmech.collector.service")

_FIRST_RETRY = 1.0
_LAST_RETRY = 60.0


class JudgeWorker:
    """A thread that judges the runs it is told of.

    Any number of notifications for a run that waits are one: judging is incremental, and one pass takes in all that was
    stored before it. A run that cannot be judged (the database is away, a law breaks) is tried again, ever later.
    """

    def __init__(
        self,
        judge: Callable[[str], int],
        behind: Callable[[], Iterable[str]],
        *,
        judged: Callable[[int, float], None] | None = None,
        failed: Callable[[], None] | None = None,
        sweep: float = 2.0,
    ) -> None:
        """Prepare; `start` starts.

        Args:
            judge: Judges what is new in a run and returns the number of residuals written.
            behind: Lists the runs that hold observations not judged yet, whoever wrote them. Asked at the start and
                every `sweep` seconds.
            judged: Told the rows and the seconds after each pass.
            failed: Called after each pass that failed.
            sweep: Seconds between two looks for runs that were written to by other processes.
        """
        self._judge = judge
        self._behind = behind
        self._judged = judged
        self._failed = failed
        self._sweep = sweep
        self._condition = threading.Condition()
        self._pending: dict[str, float] = {}  # run -> not before (monotonic seconds); in order of arrival
        self._retry: dict[str, float] = {}  # run -> seconds until its next attempt after a failure
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="learnmech-judge", daemon=True)

    @property
    def pending(self) -> int:
        """How many runs wait."""
        return len(self._pending)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def notify(self, run: str) -> None:
        """Say that `run` holds something new. From any thread; returns at once."""
        with self._condition:
            # A run that waits for its next attempt after a failure keeps its place: new data would fail the same way.
            self._pending.setdefault(run, 0.0)
            self._condition.notify()

    def stop(self, timeout: float) -> bool:
        """Judge what waits, then end the thread.

        Returns:
            False when that took longer than `timeout` seconds; what is left is judged at the next start.
        """
        with self._condition:
            self._stopping = True
            self._condition.notify()
        if self._thread.ident is None:
            return True
        self._thread.join(timeout)
        if self._thread.is_alive():
            logger.warning("the judge did not finish within %g s; the rest is judged at the next start", timeout)
        return not self._thread.is_alive()

    def _work(self) -> None:
        next_sweep = 0.0
        while True:
            if not self._stopping and time.monotonic() >= next_sweep:
                self._look_behind()
                next_sweep = time.monotonic() + self._sweep
            run = self._next(next_sweep)
            if run is not None:
                self._pass(run)
            elif self._stopping:
                return

    def _next(self, until: float) -> str | None:
        """Wait for a run that is due; None when it is time for a sweep or to stop."""
        with self._condition:
            while True:
                now = time.monotonic()
                due = next((run for run, at in self._pending.items() if at <= now), None)
                if due is not None:
                    del self._pending[due]
                    return due
                # On the way out one attempt each is enough: runs that wait for a retry have had theirs.
                if self._stopping or now >= until:
                    return None
                self._condition.wait(min([until, *self._pending.values()]) - now)

    def _pass(self, run: str) -> None:
        began = time.perf_counter()
        try:
            rows = self._judge(run)
        except Exception as error:
            delay = min(self._retry.get(run, _FIRST_RETRY / 2) * 2, _LAST_RETRY)
            expected = isinstance(error, StoreError) and error.temporary
            logger.warning("cannot judge run %s; next attempt in %g s: %s", run, delay, error, exc_info=not expected)
            self._retry[run] = delay
            with self._condition:
                self._pending[run] = time.monotonic() + delay
            if self._failed is not None:
                self._failed()
            return
        self._retry.pop(run, None)
        if self._judged is not None:
            self._judged(rows, time.perf_counter() - began)

    def _look_behind(self) -> None:
        try:
            runs = list(self._behind())
        except Exception as error:  # noqa: BLE001 (whatever it is, the thread must go on)
            logger.warning("cannot look for runs to judge: %s", error)
            return
        for run in runs:
            self.notify(run)
