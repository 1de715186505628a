"""A ratio of two noisy means, with an interval that stays honest when the denominator is not resolved."""

import math
from dataclasses import dataclass

from learnmech.laws.fieller import fieller
from learnmech.laws.statistics import student_t


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
    """

    count: float = 0.0
    degrees: float = 0.0
    mean_a: float = math.nan
    mean_b: float = math.nan
    var_a: float = math.nan
    var_b: float = math.nan
    cov: float = math.nan

    @property
    def swapped(self) -> "Moments":
        """The moments of (b, a)."""
        return Moments(self.count, self.degrees, self.mean_b, self.mean_a, self.var_b, self.var_a, self.cov)

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
