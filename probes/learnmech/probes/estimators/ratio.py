"""A ratio of two noisy means, with an interval that stays honest when the denominator is not resolved."""

import math
from dataclasses import dataclass, replace

from learnmech.laws.fieller import fieller
from learnmech.laws.statistics import student_t

STRETCH = 1.5
"""By how much of its estimated lag an interval is widened. The estimate scatters by 0.7 (a long window) to 1.7 (a young
one) times the standard error of the mean, and sees only the straight part of a drift. Coverage of the truth of the
moment, 60 cases of 800 windows (drifts of 0, 0.2 and 1 % a measurement, up and down; 6 to 200 measurements; signal to
noise 0.3 to 32): 95 to 97 % without drift, 89 % or more with any. A stretch of 1 left 64 %; with 2, windows of a weak
signal gave a number a sixth less often, and only 90 % came of it. Without widening it was 0 to 96 %."""

MOVE = 0.6
"""The part of its estimated lag by which a value moves. Measured with 0.75 (the middle of the interval), 0.6 and 0.5
(10 to 200 measurements, signal to noise 0.3 to 32, 1500 windows each): without drift the value had 2.1 to 2.6, 1.8 to
2.1 and 1.7 to 1.8 times the variance of the ratio of means (1 with 0), and lay within t standard errors of the truth
in 95 to 97, 95 to 98 and 96 to 99 %; with drifts of 0.2 and 1 % a measurement in 86, 85 and 84 % at worst. To move by
0.75 of what of the lag is beyond half a standard error is as good as 0.5 without drift, and worse with any."""


@dataclass(frozen=True, slots=True)
class Moments:
    """What a ratio of weighted means and its error need to know of pairs (a, b).

    Attributes:
        count: Effective number of pairs n = (sum w)^2 / sum w^2: the mean of pairs of weights w scatters as that of n
            pairs of equal weights.
        degrees: Degrees of freedom of the variances.
        mean_a: Weighted mean of the numerators.
        mean_b: Weighted mean of the denominators.
        var_a: Unbiased variance of one numerator.
        var_b: Unbiased variance of one denominator.
        cov: Unbiased covariance of the two.
        level_a: Where the weighted straight line through the numerators ends: their mean of the moment, as far as they
            drift evenly. NaN: not known.
        level_b: The same of the denominators.
    """

    count: float = 0.0
    degrees: float = 0.0
    mean_a: float = math.nan
    mean_b: float = math.nan
    var_a: float = math.nan
    var_b: float = math.nan
    cov: float = math.nan
    level_a: float = math.nan
    level_b: float = math.nan

    @property
    def swapped(self) -> "Moments":
        """The moments of (b, a)."""
        means, variances, levels = (self.mean_b, self.mean_a), (self.var_b, self.var_a), (self.level_b, self.level_a)
        return Moments(self.count, self.degrees, *means, *variances, self.cov, *levels)

    def standard_errors(self) -> tuple[float, float]:
        """Return the standard errors of both means; infinite for fewer than two pairs."""
        if self.count <= 1.0:
            return math.inf, math.inf
        return math.sqrt(self.var_a / self.count), math.sqrt(self.var_b / self.count)


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of means and the set of values that the data do not exclude at 95 %.

    The set is one of three (Fieller 1954): an interval; everything outside an open interval, when the denominator may
    have either sign; or every number. Only the first gives an error bar.

    Attributes:
        value: mean_a / mean_b; NaN without data.
        bounded: The set is an interval.
        determined: It is one of positive numbers whose ends are no further apart than the factor asked for.
        lower: Lower end; for the second kind, the end of the lower half-line.
        upper: Upper end; for the second kind, where the upper half-line begins.
        at_least: The smallest non-negative value of the set: what is known of a ratio that cannot be negative.
        stderr: Half-width over the t quantile; None unless bounded.
        count: Effective number of pairs it rests on.
    """

    value: float
    bounded: bool
    determined: bool
    lower: float
    upper: float
    at_least: float
    stderr: float | None
    count: float


def quantile(degrees: float) -> float:
    """Return the 97.5 % quantile of Student's t for any number of degrees of freedom from one on.

    Between whole numbers linear in 1 / degrees, which is not too small: by 2 % too large at most from 2 degrees on, by
    19 % below.

    >>> quantile(9.0), round(quantile(2.5), 2)
    (2.262, 3.63)
    """
    low = max(math.floor(degrees), 1)
    if degrees <= low:
        return student_t(low)
    share = (1.0 / low - 1.0 / degrees) * low * (low + 1)
    return (1.0 - share) * student_t(low) + share * student_t(low + 1)


def ratio_of(moments: Moments, factor: float = math.inf) -> Ratio:
    """Return the ratio of means with Fieller's set: all R with (a - R b)^2 <= t^2 Var(a - R b), a and b the means.

    Var(a - R b) is estimated from the scatter of the pairs, which are taken as independent.

    Args:
        moments: Of the pairs (a, b).
        factor: Largest upper / lower end of a ratio that counts as determined; infinite: any interval does, of any
            sign.
    """
    n = moments.count
    value = moments.mean_a / moments.mean_b if moments.mean_b else math.nan
    if n <= 1.0:
        return Ratio(value, False, False, lower=-math.inf, upper=math.inf, at_least=0.0, stderr=None, count=n)
    t = quantile(moments.degrees)
    scale = t**2 / n
    found = fieller(moments.mean_a, moments.mean_b, scale * moments.var_a, scale * moments.var_b, scale * moments.cov)
    lower, upper = found.lower, found.upper
    if found.bounded:
        stderr = (upper - lower) / (2 * t)
        determined = math.isinf(factor) or (lower > 0.0 and upper <= factor * lower)
        return Ratio(value, True, determined, lower, upper, at_least=max(lower, 0.0), stderr=stderr, count=n)
    at_least = 0.0 if lower >= 0.0 or math.isinf(upper) else max(upper, 0.0)
    return Ratio(value, False, False, lower, upper, at_least=at_least, stderr=None, count=n)


def ratio_now(moments: Moments, factor: float = math.inf) -> Ratio:
    """Return the ratio of the moment, where numerators and denominators may drift: `ratio_of`, less its lag.

    The ratio R of the weighted means belongs to the mean age of the pairs. Straight lines through both end at the ratio
    R' of the moment, as far as the drift is even; the lag is R' / R, which noise alone makes differ from 1. The
    interval is stretched by `STRETCH` times that, on the side it points to, and the value moves by `MOVE` times that:

        lower (R'/R)^1.5 if R' < R,    upper (R'/R)^1.5 if R' > R,    R (R'/R)^0.6

    and with an infinite `factor`, where the ratio may have any sign, the same by differences: upper + 1.5 (R' - R).
    Where the line of the numerators has come down to zero there is no lower end, where that of the denominators has,
    no upper one.

    Args:
        moments: Of the pairs (a, b), with their levels.
        factor: As in `ratio_of`.
    """
    past, a, b = ratio_of(moments, factor), moments.level_a, moments.level_b
    if math.isinf(factor):
        return _by_differences(past, moments)
    if not past.bounded:
        if not past.at_least > 0.0 or math.isnan(a):
            return past
        if not a > 0.0:
            return replace(past, lower=-math.inf, upper=math.inf, at_least=0.0)
        # the bound is an end of b / a, which has a middle where a / b has none
        end = 1.0 / past.at_least + STRETCH * max(b / a - moments.mean_b / moments.mean_a, 0.0)
        return replace(past, at_least=1.0 / end)
    if a <= 0.0:
        return _moved(past, past.value, min(past.lower, 0.0), past.upper, determined=False)
    if not past.value > 0.0 or math.isnan(a):
        return past
    if not b > 0.0:  # the line of the denominators has come down to zero: everything from the lower end on
        return replace(past, bounded=False, determined=False, lower=-math.inf, upper=past.at_least, stderr=None)
    lag = a / b / past.value
    lower, upper = past.lower * min(lag, 1.0) ** STRETCH, past.upper * max(lag, 1.0) ** STRETCH
    return _moved(past, past.value * lag**MOVE, lower, upper, lower > 0.0 and upper <= factor * lower)


def _by_differences(past: Ratio, moments: Moments) -> Ratio:
    a, b = moments.level_a, moments.level_b
    if not past.bounded or not math.isfinite(a) or not math.isfinite(b):
        return past
    if b * moments.mean_b <= 0.0:  # the line of the denominators has come to zero: nothing is known
        return replace(
            past, bounded=False, determined=False, lower=-math.inf, upper=math.inf, at_least=0.0, stderr=None
        )
    lag = a / b - past.value
    lower, upper = past.lower + STRETCH * min(lag, 0.0), past.upper + STRETCH * max(lag, 0.0)
    return _moved(past, past.value + MOVE * lag, lower, upper, determined=True)


def _moved(past: Ratio, value: float, lower: float, upper: float, determined: bool) -> Ratio:
    width = past.upper - past.lower
    stderr = past.stderr * (upper - lower) / width if past.stderr and width else past.stderr
    least = max(lower, 0.0)
    return replace(past, value=value, determined=determined, lower=lower, upper=upper, at_least=least, stderr=stderr)
