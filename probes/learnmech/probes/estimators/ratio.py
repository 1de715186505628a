"""A ratio of two noisy means over a window, with an interval that stays honest when the denominator is not resolved."""

import math
from collections import deque
from dataclasses import dataclass

from learnmech.laws.fieller import fieller
from learnmech.laws.statistics import student_t


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums over pairs (a, b): all that a ratio of means and its error need. Moments of disjoint sets add up.

    Attributes:
        count: Pairs n.
        mean_a: Mean of the numerators.
        mean_b: Mean of the denominators.
        sum_aa: Sum of (a - mean_a)^2. Centered, because sums of raw squares lose the digits that matter.
        sum_bb: Sum of (b - mean_b)^2.
        sum_ab: Sum of (a - mean_a)(b - mean_b).
    """

    count: int = 0
    mean_a: float = 0.0
    mean_b: float = 0.0
    sum_aa: float = 0.0
    sum_bb: float = 0.0
    sum_ab: float = 0.0

    def add(self, a: float, b: float) -> "Moments":
        """Return the moments with one pair more."""
        return self + Moments(1, a, b)

    def __add__(self, other: "Moments") -> "Moments":
        """Return the moments of both sets together (Chan, Golub & LeVeque 1983)."""
        if self.count == 0 or other.count == 0:
            return other if self.count == 0 else self
        count = self.count + other.count
        weight, share = self.count * other.count / count, other.count / count
        step_a, step_b = other.mean_a - self.mean_a, other.mean_b - self.mean_b
        return Moments(
            count,
            self.mean_a + share * step_a,
            self.mean_b + share * step_b,
            self.sum_aa + other.sum_aa + weight * step_a**2,
            self.sum_bb + other.sum_bb + weight * step_b**2,
            self.sum_ab + other.sum_ab + weight * step_a * step_b,
        )

    def standard_errors(self) -> tuple[float, float]:
        """Return the standard errors of both means; infinite for fewer than two pairs."""
        if self.count < 2:
            return math.inf, math.inf
        scale = self.count * (self.count - 1)
        return math.sqrt(self.sum_aa / scale), math.sqrt(self.sum_bb / scale)


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of means and the set of values that the data do not exclude at 95 %.

    The set is one of three (Fieller 1954): an interval; everything outside an open interval, when the denominator may
    have either sign; or every number. Only the first gives an error bar.

    Attributes:
        value: mean_a / mean_b; NaN without data.
        determined: The set is an interval.
        lower: Lower end; for the second kind, the end of the lower half-line.
        upper: Upper end; for the second kind, where the upper half-line begins.
        at_least: The smallest non-negative value of the set: what is known of a ratio that cannot be negative.
        stderr: Half-width over the t quantile; None unless determined.
        count: Pairs it rests on.
    """

    value: float
    determined: bool
    lower: float
    upper: float
    at_least: float
    stderr: float | None
    count: int


def ratio_of(moments: Moments) -> Ratio:
    """Return the ratio of means with Fieller's set: all R with (a - R b)^2 <= t^2 Var(a - R b), a and b the means.

    Var(a - R b) is estimated with n - 1 degrees of freedom from the pairs, which are taken as independent.
    """
    n = moments.count
    value = moments.mean_a / moments.mean_b if n and moments.mean_b else math.nan
    if n < 2:
        return Ratio(value, determined=False, lower=-math.inf, upper=math.inf, at_least=0.0, stderr=None, count=n)
    t = student_t(n - 1)
    scale = t**2 / (n * (n - 1))
    found = fieller(
        moments.mean_a, moments.mean_b, scale * moments.sum_aa, scale * moments.sum_bb, scale * moments.sum_ab
    )
    lower, upper = found.lower, found.upper
    if found.bounded:
        return Ratio(value, True, lower, upper, at_least=max(lower, 0.0), stderr=(upper - lower) / (2 * t), count=n)
    at_least = 0.0 if lower >= 0.0 or math.isinf(upper) else max(upper, 0.0)
    return Ratio(value, False, lower, upper, at_least=at_least, stderr=None, count=n)


class RatioWindow:
    """The last pairs (numerator, denominator) of a running measurement.

    A pair that is not finite is counted and left out. The moments are summed anew over the window every time: a running
    sum from which old values are taken away keeps their rounding errors.

    Args:
        length: Pairs to keep.

    Raises:
        ValueError: length is below two.
    """

    def __init__(self, length: int) -> None:
        if length < 2:
            raise ValueError(f"a window of {length} pairs has no error bar; expected two or more")
        self._pairs: deque[tuple[float, float]] = deque(maxlen=length)
        self.left_out = 0

    def __len__(self) -> int:
        return len(self._pairs)

    def append(self, numerator: float, denominator: float) -> None:
        """Add a pair; the oldest falls out of a full window."""
        if math.isfinite(numerator) and math.isfinite(denominator):
            self._pairs.append((numerator, denominator))
        else:
            self.left_out += 1

    def clear(self) -> None:
        """Forget all pairs."""
        self._pairs.clear()

    def moments(self) -> Moments:
        """Return the sums over the window."""
        n = len(self._pairs)
        if n == 0:
            return Moments()
        mean_a = math.fsum(a for a, _ in self._pairs) / n
        mean_b = math.fsum(b for _, b in self._pairs) / n
        centered = [(a - mean_a, b - mean_b) for a, b in self._pairs]
        return Moments(
            n,
            mean_a,
            mean_b,
            math.fsum(a * a for a, _ in centered),
            math.fsum(b * b for _, b in centered),
            math.fsum(a * b for a, b in centered),
        )

    def ratio(self) -> Ratio:
        """Return the ratio of the window's means with its interval."""
        return ratio_of(self.moments())
