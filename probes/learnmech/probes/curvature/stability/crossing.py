"""Where does a loss first rise above its value at zero along a line? By forward passes alone."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

FACTORS = (2.0, 4.0)
"""Factors of the search for the other end of the bracket: the first, and any later one. From the last crossing on, the
next is usually within a factor of two; wider steps would leave brackets that halving cannot close in time."""

TRUSTED = 256.0
"""How far beyond the evaluations the quadratic through them is followed."""

APART = 0.2
"""How far from the crossing, relative to it, an evaluation must lie to tell the slope there."""


@dataclass(slots=True)
class Crossing:
    """What is known of the multiple c at which f(c) - f(0) turns positive.

    Attributes:
        lower: Largest multiple below `upper` at which f had not risen; 0 if there is none.
        upper: Smallest multiple at which f had risen; infinite if there is none.
        evaluations: Evaluations of f(c) - f(0) that were spent.
        unresolved: The search ended where f(c) - f(0) cannot be told from its rounding.
        blur: How far rounding may move the crossing: noise over the slope there; 0 if that is not known.
    """

    lower: float = 0.0
    upper: float = math.inf
    evaluations: int = 0
    unresolved: bool = False
    blur: float = 0.0
    _secants: dict[float, float] = field(default_factory=dict)

    @property
    def bracketed(self) -> bool:
        """Tell whether both ends are known."""
        return self.lower > 0.0 and math.isfinite(self.upper)

    @property
    def value(self) -> float:
        """The middle of the bracket."""
        return (self.lower + self.upper) / 2

    @property
    def half_width(self) -> float:
        """Half the bracket, with `blur` in quadrature: the crossing lies within this distance of `value`."""
        return math.hypot((self.upper - self.lower) / 2, self.blur)

    def add(self, c: float, change: float) -> None:
        """Take in f(c) - f(0); NaN and infinity count as a rise."""
        self.evaluations += 1
        if change <= 0.0:
            self.lower = max(self.lower, c)
        else:
            self.upper = min(self.upper, c)
        if math.isfinite(change):
            self._secants[c] = change / c

    def guess(self) -> float:
        """Return where the quadratic through 0 and the two nearest evaluations crosses.

        (f(c) - f(0)) / c = a + b c / 2 is linear in c. NaN with fewer than two evaluations, or if they bend down.
        """
        middle = self.lower if math.isinf(self.upper) else self.upper if self.lower == 0.0 else self.value
        nearest = sorted(sorted(self._secants, key=lambda c: abs(math.log(c / middle)))[:2])
        if len(nearest) < 2:
            return math.nan
        (c, d), (e, f) = ((c, self._secants[c]) for c in nearest)
        bend = (f - d) / (e - c)
        return c - d / bend if bend > 0.0 else math.nan

    def steepness(self) -> float:
        """Return (f(c) - f(0)) / c at the smallest c evaluated; infinite if nothing finite was seen."""
        return self._secants[min(self._secants)] if self._secants else math.inf

    def slope(self) -> float:
        """Return the slope of f at the crossing; 0 if it is not known.

        On a quadratic, (f(c) - f(0)) / c = slope (c / crossing - 1); of the evaluations that are not too close for the
        difference to be seen above rounding, the nearest tells it.
        """
        apart = [c for c in self._secants if abs(c / self.value - 1) >= APART]
        if not apart:
            return 0.0
        best = min(apart, key=lambda c: abs(math.log(c / self.value)))
        return abs(self._secants[best] / (best / self.value - 1))


def first_rise(
    change: Callable[[float], float], *, start: float = 1.0, tol: float = 0.02, evaluations: int = 7, noise: float = 0.0
) -> Crossing:
    """Find the smallest c > 0 at which f(c) > f(0), f being smooth and falling at 0.

    From `start` on, c grows (or shrinks) by factors until f has (or has not) risen; then the bracket is closed by the
    quadratic through 0 and the two nearest points, stepping `tol` over and under its crossing, and by halving in the
    logarithm where that does not help. A quadratic is found to 2 tol with four or five evaluations. On a line along
    which f rises, falls and rises again, it is *a* crossing from below: between the points that were tried nothing
    is known.

    Args:
        change: f(c) - f(0). NaN counts as a rise.
        start: The multiple to try first: 1, or the crossing of an earlier measurement.
        tol: Half-width of the bracket to reach, relative to its middle.
        evaluations: Most evaluations.
        noise: Rounding error of f(c) - f(0): where that is all there is to see, the search ends.
    """
    found = Crossing()
    c, width = start, math.inf
    while found.evaluations < evaluations:
        found.add(c, change(c))
        if found.bracketed:
            if found.upper - found.lower <= 2 * tol * found.value * (1 + 1e-9):
                break
            now = math.log(found.upper / found.lower)
            c = _inside(found, tol, bisect=now > width / 2)
            width = now
        else:
            c = _beyond(found, tol)
            if found.lower == 0.0 and c * abs(found.steepness()) <= noise:
                found.unresolved = True  # what was seen last would be within rounding there
                break
    if found.bracketed and (slope := found.slope()) > 0.0:
        found.blur = noise / slope
    return found


def _inside(found: Crossing, tol: float, *, bisect: bool) -> float:
    """Return the next multiple within the bracket."""
    guess = found.guess()
    # over or under the guess: what leaves the smaller bracket if the guess is right
    left = {guess * (1 + tol): guess * (1 + tol) / found.lower, guess * (1 - tol): found.upper / (guess * (1 - tol))}
    inside = [c for c in left if found.lower < c < found.upper]
    if bisect or not inside:
        return math.sqrt(found.lower * found.upper)
    return min(inside, key=left.__getitem__)


def _beyond(found: Crossing, tol: float) -> float:
    """Return the next multiple beyond the only end that is known: just past the guess, if it is not too far."""
    guess = found.guess()
    factor = FACTORS[min(found.evaluations, len(FACTORS)) - 1]
    if math.isinf(found.upper):
        c = guess * (1 + tol)
        return c if found.lower < c < found.lower * TRUSTED else found.lower * factor
    c = guess * (1 - tol)
    return c if found.upper / TRUSTED < c < found.upper else found.upper / factor
