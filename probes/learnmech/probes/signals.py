"""Signals during a run: an orderly end when the process is told to terminate, and measurements on demand."""

import os
import signal
import threading
from collections.abc import Callable, Iterable
from typing import Any

from learnmech.probes.probe import Probe
from learnmech.probes.schedule import OnDemand

GRACE = 2.0
"""Seconds for delivery when the process is told to terminate: what is not delivered then stays in the spool."""


class Terminated(Exception):
    """The process was told to end by a signal."""


class Signals:
    """Listens to signals from the beginning to the end of a run.

    Only in the main thread, where Python allows it. SIGTERM is listened to only if nobody else does: then it is told
    that the run has ended, and the process ends by the signal as it would have without us. A forked child ends at once.

    Args:
        probes: The probes of the run; some may be measured on demand, by a signal.
        outside: Runs an action when nothing of ours is under way: a handler may come in the midst of it.
        terminate: Ends the run, for SIGTERM; it must take a few seconds at most.
    """

    def __init__(
        self, probes: Iterable[Probe], outside: Callable[[Callable[[], None]], None], terminate: Callable[[], None]
    ) -> None:
        self._outside = outside
        self._terminate = terminate
        self._process = os.getpid()
        self._before: dict[int, Any] = {}
        self._ours: dict[int, Callable[[int, Any], None]] = {}
        if threading.current_thread() is not threading.main_thread():
            return
        asked: dict[int, list[OnDemand]] = {}
        for schedule in dict.fromkeys(probe.schedule for probe in probes if isinstance(probe.schedule, OnDemand)):
            if schedule.signal is not None:
                asked.setdefault(schedule.signal, []).append(schedule)
        for number, schedules in asked.items():
            self._listen(number, self._requesting(schedules))
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL and signal.SIGTERM not in asked:
            self._listen(signal.SIGTERM, self._terminated)

    def _listen(self, number: int, handler: Callable[[int, Any], None]) -> None:
        self._before[number] = signal.signal(number, handler)
        self._ours[number] = handler

    def _requesting(self, schedules: list[OnDemand]) -> Callable[[int, Any], None]:
        def request(number: int, frame: Any) -> None:
            for schedule in schedules:
                schedule.request()
            before = self._before.get(number)
            if callable(before):
                before(number, frame)

        return request

    def _terminated(self, number: int, frame: Any) -> None:  # noqa: ARG002 (how Python calls it)
        def die() -> None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

        def end() -> None:
            try:
                self._terminate()
            finally:
                die()

        if os.getpid() == self._process:
            self._outside(end)
        else:
            die()

    def close(self) -> None:
        """Put back the handlers from before, where nobody has put others in their place since."""
        for number, handler in self._ours.items():
            if signal.getsignal(number) is handler:
                signal.signal(number, self._before[number])
        self._ours.clear()
