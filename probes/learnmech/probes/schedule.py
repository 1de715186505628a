"""When a probe measures: at fixed steps, on demand, or (with no schedule) whenever the budget allows."""

import bisect
import math
import signal as signals
from collections.abc import Iterable
from dataclasses import dataclass

_HEARD = signals.valid_signals() - {getattr(signals, name, None) for name in ("SIGKILL", "SIGSTOP")}
"""Signals that a process can listen to."""


class Schedule:
    """Steps at which to measure, whatever it costs. A schedule of your own defines `latest` and has a telling repr.

    What several processes measure together needs a schedule of ours: where yours says something else in one of them,
    the others would wait for it.
    """

    def latest(self, step: int) -> int:
        """Return the last scheduled step up to `step`; -1 if there is none."""
        raise NotImplementedError(f"{type(self).__name__} does not define latest(step)")

    def next(self, step: int) -> float:
        """Return the first step after `step` at which to look again; infinite if there is none."""
        return step + 1

    def begin(self) -> None:
        """Forget an earlier run: another begins."""

    def due(self, step: int, since: int) -> bool:
        """Tell whether a measurement is due at `step`, having last looked after step `since` (-1: never).

        A step that could not be measured (the first of a run, a skipped one) is made up for at the next one.
        """
        return self.latest(step) > since


@dataclass(frozen=True, slots=True)
class Every(Schedule):
    """Measure at steps `start`, `start + n`, `start + 2 n`, ...

    Attributes:
        n: Steps between measurements.
        start: First step.
    """

    n: int
    start: int = 0

    def __post_init__(self) -> None:
        if not _is_whole(self.n) or self.n < 1:
            raise ValueError(f"every({self.n!r}): expected a whole number of steps from 1 on, such as every(20)")
        if not _is_whole(self.start) or self.start < 0:
            raise ValueError(f"every({self.n}, start={self.start!r}): expected a step from 0 on, such as start=100")

    def latest(self, step: int) -> int:
        """Return the last scheduled step up to `step`; -1 if there is none."""
        return -1 if step < self.start else step - (step - self.start) % self.n

    def next(self, step: int) -> float:
        """Return the first scheduled step after `step`."""
        return self.start if step < self.start else self.latest(step) + self.n


@dataclass(frozen=True, slots=True)
class At(Schedule):
    """Measure at given steps.

    Attributes:
        steps: The steps, in order.
    """

    steps: tuple[int, ...]

    def latest(self, step: int) -> int:
        """Return the last scheduled step up to `step`; -1 if there is none."""
        index = bisect.bisect_right(self.steps, step)
        return self.steps[index - 1] if index else -1

    def next(self, step: int) -> float:
        """Return the first scheduled step after `step`; infinite if there is none."""
        index = bisect.bisect_right(self.steps, step)
        return self.steps[index] if index < len(self.steps) else math.inf


@dataclass(frozen=True, slots=True)
class LogSpaced(Schedule):
    """Measure at steps that are equally far apart on a logarithmic axis.

    Attributes:
        per_decade: Measurements from one power of ten to the next.
        start: First step, from 1 on.
    """

    per_decade: int
    start: int = 1

    def __post_init__(self) -> None:
        if not _is_whole(self.per_decade) or self.per_decade < 1:
            raise ValueError(
                f"log_spaced({self.per_decade!r}): expected measurements per decade, such as log_spaced(10)"
            )
        if not _is_whole(self.start) or self.start < 1:
            raise ValueError(
                f"log_spaced({self.per_decade}, start={self.start!r}): expected a step from 1 on, such as start=10"
            )

    def next(self, step: int) -> float:
        """Return the first scheduled step after `step`."""
        index = max(0, math.floor(self.per_decade * math.log10(max(step, self.start) / self.start)) - 1)
        while self._step(index) <= step:
            index += 1
        return self._step(index)

    def _step(self, index: int) -> int:
        return round(float(self.start * 10.0 ** (index / self.per_decade)))

    def latest(self, step: int) -> int:
        """Return the last scheduled step up to `step`; -1 if there is none."""
        if step < self.start:
            return -1
        index = math.floor(self.per_decade * math.log10(step / self.start)) + 1  # rounding may have lifted the next one
        while self._step(index) > step:
            index -= 1
        return self._step(index)


class OnDemand(Schedule):
    """Measure once, at the next step, whenever `request` is called: by a signal, from a debugger, from another thread.

    Probes that share one such schedule measure once each. Several processes cannot agree on a step without talking to
    each other at every one: probes that all processes measure together cannot be had on demand.

    Args:
        signal: Number of a signal that asks for a measurement, such as `signal.SIGUSR1`; listened to during the run, in
            the main thread, after which the handler from before is back. None: `request` is the only way.

    Raises:
        ValueError: There is no such signal, or no process can listen to it.
    """

    def __init__(self, signal: int | None = None) -> None:
        if signal is not None and (not _is_whole(signal) or signal not in _HEARD):
            raise ValueError(f"on_demand({signal!r}): expected a signal to listen to, such as signal.SIGUSR1")
        self.signal = signal
        self._waits = self._told = False
        self._asked = -1

    def __repr__(self) -> str:
        return f"on_demand({'' if self.signal is None else self.signal})"

    def request(self) -> None:
        """Ask for a measurement. Safe in a signal handler and in any thread."""
        self._waits = True

    def tell(self, *, on: bool = True) -> None:
        """Ask the run under way alone: a later one does not make up for it; not `on`: none has been asked yet."""
        self._told = on

    def begin(self) -> None:
        """Forget the requests that an earlier run has answered; one that waits is for the next run."""
        self._asked = -1

    def due(self, step: int, since: int) -> bool:
        """Tell whether it was asked for; a request in a step that was looked at already is for the next one."""
        return step > since and self.latest(step) > since

    def latest(self, step: int) -> int:
        """Return the step at which the last request was seen; -1 if there has been none."""
        if self._waits or self._told:
            self._waits = self._told = False
            self._asked = step
        return self._asked


def alike(schedule: Schedule | None) -> bool:
    """Tell whether a schedule says the same in every process: not what is asked for, nor what a user's class decides.

    Without a schedule the first process decides for all.

    >>> alike(every(5)), alike(None), alike(on_demand())
    (True, True, False)
    """
    return schedule is None or type(schedule) in (Every, At, LogSpaced)


def every(n: int, start: int = 0) -> Every:
    """Measure every `n` steps from step `start` on.

    >>> [step for step in range(10) if every(4, start=1).due(step, step - 1)]
    [1, 5, 9]

    Raises:
        ValueError: `n` or `start` is not a whole number in range.
    """  # noqa: DOC502 (raised by Every)
    return Every(n, start)


def at(steps: Iterable[int]) -> At:
    """Measure at given steps.

    >>> [step for step in range(100) if at([3, 50, 7]).due(step, step - 1)]
    [3, 7, 50]

    Raises:
        ValueError: There is none, or one is not a whole number from 0 on.
    """
    found = sorted(set(steps))
    if not found or not all(_is_whole(step) and step >= 0 for step in found):
        raise ValueError(f"at({found!r}): expected steps from 0 on, such as at([0, 100, 1000])")
    return At(tuple(found))


def log_spaced(per_decade: int, start: int = 1) -> LogSpaced:
    """Measure `per_decade` times from one power of ten to the next, from step `start` on.

    >>> [step for step in range(1001) if log_spaced(3).due(step, step - 1)]
    [1, 2, 5, 10, 22, 46, 100, 215, 464, 1000]

    Raises:
        ValueError: `per_decade` or `start` is not a whole number from 1 on.
    """  # noqa: DOC502 (raised by LogSpaced)
    return LogSpaced(per_decade, start)


def on_demand(signal: int | None = None) -> OnDemand:
    """Measure once, at the next step, whenever it is asked for.

    >>> schedule = on_demand()
    >>> schedule.due(7, 6)
    False
    >>> schedule.request()
    >>> [step for step in range(7, 10) if schedule.due(step, step - 1)]
    [7]

    Raises:
        ValueError: There is no such signal, or no process can listen to it.
    """  # noqa: DOC502 (raised by OnDemand)
    return OnDemand(signal)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
