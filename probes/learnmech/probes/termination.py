"""SIGTERM during a run: the run is told to have failed, and the process ends by the signal as it would have without us.

A Python handler runs in the main thread only, between two of its instructions: never while that waits in C, as in an
all_reduce whose peers are gone. C-level handling writes to the wakeup descriptor at once, though, and a thread of ours
reads it: it ends the runs, each in a thread of its own, and after at most `GRACE` seconds the process. The thread that
was interrupted does nothing but wait: it may hold any lock.
"""

import _thread
import contextlib
import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

End = Callable[[], None]
"""Tells that a run has failed, and delivers for `GRACE` seconds at most; called in another thread than the training."""

GRACE = 2.0
"""Seconds for delivery when the process is told to terminate: what is not delivered then stays in the spool."""

MARGIN = 0.5
"""Seconds more that the interrupted thread waits: the ends, started together, may each take `GRACE` to the full."""

_END, _STOP = 254, 255
"""Bytes for the watching thread that are no signals: end the runs only; stop watching."""


def _die() -> None:
    """End by SIGTERM. In C, since `signal.signal` works in the main thread only."""
    default = ctypes.CDLL(None).signal
    default.argtypes, default.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    default(signal.SIGTERM, None)  # SIG_DFL is the null pointer
    os.kill(os.getpid(), signal.SIGTERM)


def heard_in_c(number: int) -> bool:
    """Tell whether code in C listens to a signal (faulthandler, MPI): `signal.signal` could not put that back."""
    known = signal.getsignal(number)
    if known is signal.SIG_DFL or known is signal.SIG_IGN:  # Python does not hear of what is installed past it
        return (_handler(number) or 0) != int(known)
    return known is None


_handler = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_int)(("PyOS_getsig", ctypes.pythonapi))
"""Returns the address of what is called at a signal; None or 1: the default, nothing."""


def _is_free() -> bool:
    return signal.getsignal(signal.SIGTERM) is signal.SIG_DFL and not heard_in_c(signal.SIGTERM)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


class Termination:
    """Listens to SIGTERM for all open runs of the process, while there are any.

    Only where nobody else does, from the main thread on, and where the wakeup descriptor is free: anything else, and
    the process ends as it always did.
    """

    def __init__(self) -> None:
        self._open: list[End] = []
        self._reader = self._writer = -1
        self._ending = False

    def add(self, end: End) -> None:
        """Listen for a run."""
        self._open.append(end)
        if self._writer < 0 and _in_main_thread() and _is_free():
            self._listen()

    def discard(self, end: End) -> None:
        """Listen no more for a run. Outside of the main thread the handler stays, which then just ends the process."""
        with contextlib.suppress(ValueError):
            self._open.remove(end)
        if self._open or self._writer < 0 or not _in_main_thread():
            return
        if signal.getsignal(signal.SIGTERM) is _terminated:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._wake(on=False)
        self.say(_STOP)
        os.close(self._writer)
        self._reader = self._writer = -1

    def _listen(self) -> None:
        if os.name != "posix":
            return
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        if not self._wake(on=True):
            os.close(self._reader)
            os.close(self._writer)
            self._reader = self._writer = -1
            return
        threading.Thread(target=self._watch, args=(self._reader,), name="learnmech-sigterm", daemon=True).start()
        signal.signal(signal.SIGTERM, _terminated)

    def _wake(self, *, on: bool) -> bool:
        """Set the wakeup descriptor, if it is free, or free it, if it is ours; tell whether it was done."""
        mine = self._writer
        before = signal.set_wakeup_fd(mine if on else -1, warn_on_full_buffer=False)
        done = before in ((-1, mine) if on else (mine,))
        if not done:
            signal.set_wakeup_fd(before, warn_on_full_buffer=False)
        return done

    def say(self, byte: int) -> None:
        """Tell the watching thread."""
        with contextlib.suppress(OSError):  # full: it has been told
            os.write(self._writer, bytes([byte]))

    def handle(self) -> None:
        """Wait for the watching thread to end the runs, and end the process.

        A handler that was installed after ours and calls it wants to go on, with a checkpoint perhaps.
        """
        alone = signal.getsignal(signal.SIGTERM) is _terminated
        deadline = time.monotonic() + GRACE + MARGIN
        if self._writer >= 0:
            self.say(signal.SIGTERM if alone else _END)
            while (self._open or self._ending) and time.monotonic() < deadline:
                time.sleep(0.01)  # no lock, no event: a second signal may come in here
        if alone:
            _die()

    def _watch(self, reader: int) -> None:
        with contextlib.suppress(OSError):  # somebody has closed a descriptor that is not theirs
            while (found := os.read(reader, 64)) and all(map(self._heard, found)):
                pass
            os.close(reader)

    def _heard(self, byte: int) -> bool:
        """Do what a byte says; tell whether to go on watching."""
        ours = byte == signal.SIGTERM and signal.getsignal(signal.SIGTERM) is _terminated
        if ours or byte == _END:
            try:
                self._end()
            finally:
                if ours:
                    _die()
        return byte != _STOP

    def _end(self) -> None:
        """End all runs at once, and wait for `GRACE` seconds."""
        self._ending = True  # first: without runs the handler does not wait
        runs, self._open = self._open, []
        locks = [_thread.allocate_lock() for _ in runs]
        deadline = time.monotonic() + GRACE
        for end, lock in zip(runs, locks, strict=True):
            lock.acquire()
            _thread.start_new_thread(_run, (end, lock))  # threading's waits for locks that the main thread may hold
        for lock in locks:
            lock.acquire(timeout=max(deadline - time.monotonic(), 0.0))
        self._ending = False

    def before_fork(self) -> None:
        """Keep the signals of a child, from its first instruction on, out of this process's descriptor."""
        if self._writer >= 0 and _in_main_thread():
            self._wake(on=False)

    def after_fork_in_parent(self) -> None:
        """Listen again."""
        if self._writer >= 0 and _in_main_thread():
            self._wake(on=True)

    def after_fork_in_child(self) -> None:
        """Forget the runs: they are the parent's."""
        self._open.clear()
        if self._writer < 0:
            return
        self._wake(on=False)
        if signal.getsignal(signal.SIGTERM) is _terminated:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.close(self._reader)
        os.close(self._writer)
        self._reader = self._writer = -1


def _run(end: End, lock: _thread.LockType) -> None:
    try:
        with contextlib.suppress(Exception):
            end()
    finally:
        lock.release()


TERMINATION = Termination()


def _terminated(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 (how Python calls it)
    TERMINATION.handle()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=TERMINATION.before_fork,
        after_in_parent=TERMINATION.after_fork_in_parent,
        after_in_child=TERMINATION.after_fork_in_child,
    )
