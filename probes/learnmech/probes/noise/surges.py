"""Updates whose gradient is far out of line with the window: left out if they pass, a new beginning if they stay."""

import enum

FACTOR = 100.0
"""How many times the usual |g|^2 is out of line. Noise with light tails never gets there: the square of one Gaussian
number does with a probability of 1e-23. Of log-normal noise with a standard deviation of 1.5 of the logarithm 1 % of
the mean lies beyond, of one with 1.0 nothing that could be seen; that is how much too small a trace may come out."""

SETTLED = 10
"""Measurements from which there is a usual |g|^2."""

PATIENCE = 3
"""Measurements in a row out of line on the same side after which that is what is usual now."""


class Verdict(enum.Enum):
    """What to do with a measurement."""

    TAKE = "take"
    LEAVE = "leave it out"
    BEGIN = "begin a new window with it"


class Surges:
    """Decides about the measurements of one window by their size |G|^2 + tr Sigma / B, which is about |g|^2.

    One update whose gradient is 20 times the usual would leave a window of 72 undetermined for 219 measurements, one of
    1000 times for 781: it is left out. Where that lasts, or where gradients have become smaller by as much, the window
    begins anew.
    """

    def __init__(self) -> None:
        self._above = self._below = 0

    def judge(self, size: float, usual: float, count: int) -> Verdict:
        """Say what to do with a measurement.

        Args:
            size: Its size.
            usual: That of the window's means.
            count: Measurements in the window.
        """
        if count < SETTLED or not usual > 0.0:
            self._above = self._below = 0
            return Verdict.TAKE
        self._above = self._above + 1 if size > FACTOR * usual else 0
        self._below = self._below + 1 if size * FACTOR < usual else 0
        if max(self._above, self._below) >= PATIENCE:
            self._above = self._below = 0
            return Verdict.BEGIN
        return Verdict.LEAVE if self._above else Verdict.TAKE
