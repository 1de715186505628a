"""Fieller's set: what two noisy means say of their ratio, honest also when the denominator is not resolved."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FiellerSet:
    """The set of ratios that the data do not exclude.

    Attributes:
        bounded: It is the interval from `lower` to `upper`. Otherwise the denominator may have either sign, and the set
            is everything outside the open interval from `lower` to `upper`, or every number (both infinite).
        lower: Lower end.
        upper: Upper end.
    """

    bounded: bool
    lower: float
    upper: float


EVERYTHING = FiellerSet(bounded=False, lower=-math.inf, upper=math.inf)


def fieller(mean_a: float, mean_b: float, var_a: float, var_b: float, cov: float) -> FiellerSet:
    """Return the set of all R with (a - R b)^2 <= Var(a - R b), a and b the means (Fieller 1954).

    >>> fieller(2.0, 1.0, 0.25, 0.0, 0.0)
    FiellerSet(bounded=True, lower=1.5, upper=2.5)
    >>> fieller(2.0, 0.1, 0.04, 1.0, 0.0).bounded
    False

    Args:
        mean_a: Mean a of the numerators.
        mean_b: Mean b of the denominators.
        var_a: Variance of a, times the squared t quantile of the confidence wanted.
        var_b: The same of b.
        cov: The same of their covariance.
    """
    # leading R^2 - 2 middle R + constant <= 0
    # products, not powers: those raise OverflowError where these become infinite
    leading, middle, constant = mean_b * mean_b - var_b, mean_a * mean_b - cov, mean_a * mean_a - var_a
    discriminant = middle * middle - leading * constant
    if not all(math.isfinite(c) for c in (leading, constant, discriminant)) or leading == 0.0:
        return EVERYTHING
    if leading < 0.0 and discriminant < 0.0:
        return EVERYTHING
    # for leading > 0 not negative but by rounding, since R = a / b satisfies the inequality: the interval has no width
    root = math.sqrt(max(discriminant, 0.0))
    lower, upper = sorted(((middle - root) / leading, (middle + root) / leading))
    return FiellerSet(leading > 0.0, lower, upper)
