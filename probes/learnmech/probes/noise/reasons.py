"""Why a ratio of two means over a window is not told, and what is known of it all the same."""

from learnmech.probes.estimators.ratio import Moments, Ratio, ratio_of
from learnmech.probes.noise.window import FEWEST, ExponentialWindow

SUSPECTED = "the latest measurements are off the window: the noise may have jumped"


def too_few(count: int, since: str = "so far") -> str:
    """Say that there are too few measurements for a ratio.

    >>> too_few(1)
    '1 measurement so far; a number takes 8'
    """
    return f"{count} measurement{'s' if count > 1 else ''} {since}; a number takes {FEWEST}"


def too_loose(moments: Moments, ratio: Ratio, factor: float, *, numerator: str, name: str) -> str:
    """Say why a ratio is not determined whose denominator is resolved from zero, and whose upper end is positive.

    Args:
        moments: Of the window.
        ratio: Their ratio of the moment.
        factor: Largest upper over lower end of the interval of a determined ratio.
        numerator: What the numerator is called.
        name: What the ratio is called.
    """
    past = ratio_of(moments, factor)
    if ratio.lower <= 0.0:
        trace = "falls to" if past.lower > 0.0 else "is not resolved from"
        return f"{numerator} {trace} zero: {name} is at most {ratio.upper:.3g}"
    apart = f"between {ratio.lower:.3g} and {ratio.upper:.3g}, more than a factor of {factor:g} apart"
    return f"it seems to drift: {past.value:.3g} over the window, {apart} now" if past.determined else apart


def with_left_out(reason: str, window: ExponentialWindow) -> str:
    """Add to a reason how many measurements are not in the window."""
    if not window.left_out:
        return reason
    return f"{reason}; {window.left_out} measurement{'s were' if window.left_out > 1 else ' was'} left out"
