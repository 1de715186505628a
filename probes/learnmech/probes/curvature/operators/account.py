"""The account that an inexact operator keeps of its own error: how far two step sizes are apart."""

import math

FACTOR = math.sqrt(2.0)
"""True error over |D(2h) - D(h)|, D(h) being the product with step h. Rounding: errors R/h and R/2h are independent,
so the difference is 1.1 R/h, and the factor 0.9. Truncation: errors T h^2 and 4 T h^2, factor 1/3. Kinks, met at a
constant rate: those within h count half in D(2h), the others are new; the variances give sqrt(2). The largest of the
three, so that the account is too large by at most 4."""

GROWTH = 2.0
"""The error is looked at again once products are so many times longer than at the last look: the error from truncation
is a matter of direction, and largest along the vectors that the matrix stretches most."""

FOURTH = 4
"""And at the fourth product, by when a Krylov space holds what is typical; a warm start is done before. With looks at
the first product and at growth alone, the largest error of a run was up to twice what was stated (scaled matrices)."""

LOOKS = 4
"""Most looks of one operator."""


class Account:
    """Tells when to look at the error, and keeps the largest seen.

    Attributes:
        norm: Longest product of a unit vector so far: a lower bound of |A|.
        uncertainty: Largest error of a product of a unit vector.
        looks: How often it was looked at.
    """

    def __init__(self) -> None:
        self.norm = 0.0
        self.uncertainty = 0.0
        self.looks = 0
        self._products = 0
        self._last = 0.0

    def due(self, norm: float) -> bool:
        """Take in the length of the product of a unit vector; tell whether to look at its error."""
        if not math.isfinite(norm):
            return False
        self.norm = max(self.norm, norm)
        self._products += 1
        grown = norm > GROWTH * self._last or self._products == FOURTH
        return self.looks == 0 or (grown and self.looks < LOOKS)

    def look(self, norm: float, difference: float) -> None:
        """Take in how far the products of a unit vector with steps h and 2h are apart; `norm` is the length of one."""
        self.looks += 1
        self._last = max(self._last, norm)
        self.uncertainty = max(self.uncertainty, FACTOR * difference if math.isfinite(difference) else math.inf)

    @property
    def error(self) -> float:
        """Relative error |A v - product| / |A|, at most: the norm is bounded from below by what was seen of it."""
        if self.uncertainty == 0.0:
            return 0.0
        return self.uncertainty / self.norm if self.norm > 0 else math.inf
