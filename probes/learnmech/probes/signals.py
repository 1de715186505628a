"""Signals during a run: measurements on demand, and an orderly end when the process is told to terminate."""

import logging
import signal
import threading
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

from learnmech.probes.probe import Probe
from learnmech.probes.schedule import OnDemand
from learnmech.probes.termination import TERMINATION, End, heard_in_c

Handler = Callable[[int, FrameType | None], None]
"""What Python calls when a signal comes."""

logger = logging.getLogger("learnmech.probes")


class Signals:
    """Listens to signals from the beginning to the end of a run.

    Begun in another thread than the main one, where Python does not allow it, it listens to nothing. Closed there, its
    handlers stay, and ask a run that is over. A signal that code in C listens to stays with it.

    Args:
        probes: The probes of the run; some may be measured on demand, by a signal.
        end: Ends the run at SIGTERM; None to leave SIGTERM alone.
    """

    def __init__(self, probes: Iterable[Probe], end: End | None = None) -> None:
        self._end = end
        self._before: dict[int, Any] = {}
        self._ours: dict[int, Handler] = {}
        asked: dict[int, list[OnDemand]] = {}
        for schedule in dict.fromkeys(probe.schedule for probe in probes if isinstance(probe.schedule, OnDemand)):
            if schedule.signal is not None:
                asked.setdefault(schedule.signal, []).append(schedule)
        if asked and threading.current_thread() is threading.main_thread():
            _OPEN.append(self)
            for number, schedules in asked.items():
                self._listen(number, schedules)
        if end is not None:
            TERMINATION.add(end)

    def _listen(self, number: int, schedules: list[OnDemand]) -> None:
        if heard_in_c(number):
            logger.warning("learnmech measures nothing at signal %d: code in C listens to it (faulthandler?)", number)
            return
        self._ours[number] = self._requesting(schedules)
        self._before[number] = signal.signal(number, self._ours[number])

    def _requesting(self, schedules: list[OnDemand]) -> Handler:
        def request(number: int, frame: FrameType | None) -> None:
            for schedule in schedules:
                schedule.request()
            before = self._before.get(number)
            if callable(before):
                before(number, frame)

        return request

    def close(self) -> None:
        """Put back the handlers from before, where nobody has put others in their place since."""
        if self._end is not None:
            TERMINATION.discard(self._end)
            self._end = None  # it holds the run, and whoever closes in another thread leaves us in the list
        if threading.current_thread() is not threading.main_thread():
            return
        for number, handler in self._ours.items():
            for other in _OPEN:
                other.forget(number, handler, self._before[number])
            if signal.getsignal(number) is handler:
                signal.signal(number, self._before[number])
        self._ours.clear()
        if self in _OPEN:
            _OPEN.remove(self)

    def forget(self, number: int, handler: Handler, before: Any) -> None:
        """Call what was there before a handler that is no more: begun later than that, we would bring it back."""
        if self._before.get(number) is handler:
            self._before[number] = before


_OPEN: list[Signals] = []
"""Those that listen, in the main thread."""
