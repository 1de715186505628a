"""Updates whose gradient is far out of line with the window: left out if they pass, a new beginning if they stay."""

import enum
import math

from learnmech.probes.estimators.ratio import Moments

FACTOR = 100.0
"""How many times the usual |g|^2 is out of line. Noise with light tails never gets there: the square of one Gaussian
number does with a probability of 1e-23. Of log-normal noise with a standard deviation of 1.5 of the logarithm 1 % of
the mean lies beyond, of one with 1.0 nothing that could be seen; that is how much too small a trace may come out."""

SETTLED = 10
"""Measurements from which there is a usual |g|^2."""

PATIENCE = 3
"""Measurements in a row out of line on the same side after which that is what is usual now."""

DEVIATIONS = 1.75
"""Standard deviations off the window, on one side, of pairs that belong to a jump."""

IN_A_ROW = 5
"""How many of these in a row are a jump. Measured (Gaussian pieces of dimension 1 to 50 and log-normal noise, 100 000
measurements each or more): 4 windows in 800 000 measurements were begun for nothing, that is in 0.3 % of runs of 500. A
drift of 2 or 5 % a measurement began none. With a trace that scatters by 10 % and a |G|^2 by 30 %, after 30 or 100
measurements: a trace that jumps to 1/10, 1/2 or 10 times was always told at the fifth measurement, a |G|^2 that jumps
to 1/10 in 65 %, one that scatters by 100 % never."""

SUSPECT = 3
"""How many of these in a row withhold ratios until it is decided. A trace that jumps so leaves two wrong numbers, not
four; without a jump 0.1 % of numbers are withheld for nothing (measured with scatters of 10 and 30 %)."""

LONG_ENOUGH = 20
"""Measurements from which a window can tell a jump: its standard deviations are then known to 16 %."""


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


class Jumps:
    """Tells that what a window measures has jumped: five pairs in a row are off it, on the same side.

    Off means beyond the mean and beyond the end of the straight line through the window by 1.75 standard deviations of
    one number, as they were before the first of the five: an even drift is no jump, up to 5 % a measurement.
    """

    def __init__(self) -> None:
        self._runs = (_Run(), _Run())

    @property
    def suspected(self) -> bool:
        """Whether the latest pairs are off, though not enough of them to tell."""
        return max(run.count for run in self._runs) >= SUSPECT

    def judge(self, a: float, b: float, window: Moments, count: int) -> bool:
        """Say whether a pair is the last that it takes to tell.

        Args:
            a: Its numerator.
            b: Its denominator.
            window: Moments of the pairs before it.
            count: Number of these.
        """
        if count < LONG_ENOUGH:
            self._runs = (_Run(), _Run())
            return False
        first, second = self._runs
        lengths = (
            first.length(a, window.mean_a, window.level_a, window.var_a),
            second.length(b, window.mean_b, window.level_b, window.var_b),
        )
        return max(lengths) >= IN_A_ROW


class _Run:
    """Numbers in a row beyond a bound, which is the window's when the first of them comes."""

    def __init__(self) -> None:
        self.count = 0
        self._side = self._bound = 0.0

    def length(self, x: float, mean: float, level: float, variance: float) -> int:
        """Return how many there are up to and with x."""
        if self.count and self._side * (x - self._bound) > 0.0:
            self.count += 1
            return self.count
        margin = DEVIATIONS * math.sqrt(variance)
        above, below = max(mean, level) + margin, min(mean, level) - margin
        self.count = int(x > above or x < below)
        self._side, self._bound = (1.0, above) if x > above else (-1.0, below)
        return self.count
