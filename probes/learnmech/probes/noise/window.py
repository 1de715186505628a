"""Pairs (a, b) of a running measurement, weighed by age: their means, and the ratio of these with its interval."""

import math

from learnmech.probes.estimators.ratio import Moments, Ratio, ratio_of

RESOLVED = 4.0
"""Largest upper over lower end of the interval of a determined ratio: the value is then known to a factor of about two
either way, in which decisions about batch size are made."""

FEWEST = 8
"""Measurements that a ratio takes to be a number. Fieller's set covers 95 % from two on, but of few measurements those
that have a narrow one are chosen by chance. Four Gaussian pieces, signal
to noise 0.1 in 1000 dimensions: of 2, 4, 6, 8, 10 and 16 measurements 8, 21, 36, 52, 71 and 92 % of windows give a
number, of which 56, 90, 92, 96, 96 and 97 % cover the truth (signal to noise 1: 90 % of two, 96 to 97 % from four on).
In 20 dimensions 0.6 % of windows of 2 to 6 measurements do and 0.1 to 0.2 % of 8 to 16, and hardly one covers."""


class ExponentialWindow:
    """Pairs (a, b), of which one loses half of its weight with every `half_life` pairs that follow.

    With d = 2^(-1 / half_life) pair i of n weighs d^(n - i). The effective number of pairs, (sum w)^2 / sum w^2, is n
    at first and approaches (1 + d) / (1 - d), which is 2 half_life / ln 2 = 2.89 half_life; the mean age of what is
    averaged approaches d / (1 - d), that is half_life / ln 2 = 1.44 half_life pairs.

    The interval is for the ratio of the weighted means of the *true* a and b, and takes the pairs as independent given
    these: each from a batch of its own. When the truth moves, its motion counts as scatter, which widens the interval;
    the ratio itself lags by the mean age, and the interval does not cover that. The ratio of the moment, which takes
    the drift from the pairs themselves, does: `now`.

    Sums are carried along, centered, so that a pair costs the same whatever the window; nothing is ever subtracted.
    A pair that is not finite is counted and left out.

    Args:
        half_life: In pairs, 1 or more.

    Attributes:
        count: Pairs taken.
        left_out: Pairs left out.

    Raises:
        ValueError: The half-life is below 1, or not finite.
    """

    def __init__(self, half_life: float) -> None:
        if not 1.0 <= half_life < math.inf:
            raise ValueError(f"a half-life of {half_life} measurements; expected 1 or more, such as 25")
        self._decay = 2.0 ** (-1.0 / half_life)
        self.clear()

    def clear(self) -> None:
        """Forget all pairs."""
        self.count = 0
        self.left_out = 0
        self._weights = (0.0, 0.0, 0.0)  # sums of w, w^2, w^3
        self._means = (0.0, 0.0)
        self._squares = (0.0, 0.0, 0.0)  # sums of w (a - mean)^2, w (b - mean)^2, and of the product
        self._ages = (0.0, 0.0)  # sums of w age, w age^2
        self._trends = (0.0, 0.0)  # sums of w age (a - mean), w age (b - mean)

    def append(self, a: float, b: float) -> bool:
        """Add a pair, and say whether it was taken: not if one of the two is not finite, or its square is not."""
        if not math.isfinite(a * a + b * b):
            self.left_out += 1
            return False
        d, (w1, w2, w3) = self._decay, self._weights
        old = d * w1
        self._weights = (old + 1.0, d**2 * w2 + 1.0, d**3 * w3 + 1.0)
        (mean_a, mean_b), (aa, bb, ab) = self._means, self._squares
        x, y, share = a - mean_a, b - mean_b, 1.0 / (old + 1.0)
        # West 1979: sum w (a - mean)^2 grows by (old / new weight) (a - old mean)^2
        self._means = (mean_a + share * x, mean_b + share * y)
        rest = old * share
        self._squares = (d * aa + rest * x * x, d * bb + rest * y * y, d * ab + rest * x * y)
        # all pairs are older by one, and the means have moved; sum w (a - mean) is zero before
        (s1, s2), (trend_a, trend_b) = self._ages, self._trends
        self._ages = (d * (s1 + w1), d * (s2 + 2.0 * s1 + w1))
        moved = self._ages[0] * share
        self._trends = (d * trend_a - moved * x, d * trend_b - moved * y)
        self.count += 1
        return True

    def moments(self) -> Moments:
        """Return the weighted moments.

        With p_i = w_i / sum w and q = sum p_i^2 = 1 / n_eff, sum p_i (a_i - mean)^2 has the mean (1 - q) Var(a), and as
        many degrees of freedom as the chi-square of its own mean and variance (Satterthwaite 1946):

            (1 - q)^2 / (q - 2 sum p_i^3 + q^2)

        which is n - 1 for equal weights, and n_eff - 1/3 in a long window.
        """
        if self.count == 0:
            return Moments()
        w1, w2, w3 = self._weights
        if self.count == 1:
            return Moments(1.0, 0.0, *self._means)
        # least squares: the line falls by C / (S2 - S1^2 / W) with each pair of age, and passes the mean at age S1 / W
        s1, s2 = self._ages
        reach = s1 / w1 / (s2 - s1**2 / w1)
        levels = (mean - reach * trend for mean, trend in zip(self._means, self._trends, strict=True))
        q, cubes = w2 / w1**2, w3 / w1**3
        degrees = (1.0 - q) ** 2 / (q - 2.0 * cubes + q**2)
        variances = (total / (w1 * (1.0 - q)) for total in self._squares)
        return Moments(1.0 / q, degrees, *self._means, *variances, *levels)

    def ratio(self, factor: float = RESOLVED) -> Ratio:
        """Return the ratio of the mean of a to the mean of b, with its 95 % interval.

        Args:
            factor: The ratio is determined if its interval spans no more than this factor, above zero.
        """
        return ratio_of(self.moments(), factor)
