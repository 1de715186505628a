"""The noise of all parameters from that of the normalization layers alone, which costs next to nothing to measure."""

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from learnmech.probes.estimators.ratio import quantile
from learnmech.probes.noise.window import RESOLVED

METHOD = "layer_norm_examples"
"""How a number that comes from here is marked."""

FITTED = 6
"""Exact measurements that the factor is fitted to. Measured along 1500 steps of a transformer of two blocks (two
seeds), exactly every 20, 40 or 80 steps: the factor of tr Sigma fell from 885 to 111. Estimates in between were off by
7 % in the median, with a bias of +2, 0 and -4 %, and their 95 % interval held 94, 96 and 90 % of the exact numbers.
With a factor that is taken as constant over a window of half-life 3, the bias was 18 to 45 %."""


NORMAL = 1.959964
"""The 97.5 % quantile of the normal distribution."""


@dataclass(frozen=True, slots=True)
class Scaled:
    """A number for all parameters that was measured on the norms.

    Attributes:
        value: Factor times what was measured; None while the factor is not known.
        stderr: Half the 95 % interval over 1.96: of the factor, and of its scatter from one measurement to the next.
        reason: Why there is no value.
    """

    value: float | None
    stderr: float | None
    reason: str = ""


class NormFactor:
    """The factor from tr Sigma of the norms' parameters, b, to that of all, a, fitted to the latest exact measurements.

    It drifts, and in training mostly by so many percent a step: ordinary least squares on m pairs,

        log(a / b) = alpha + beta (t - t0) + e,    Var(e) = s^2 with m - 2 degrees of freedom,

    and for a new step t, at a distance x from the mean of the t_i,

        Var = s^2 (1 + 1/m + x^2 / sum_i (t_i - mean)^2)

    by which the logarithm of the exact number scatters about that of the estimate: Student's interval of it is for what
    an exact measurement on the same batch would have given. The noise of the exact measurements is in s.

    Gray et al. 2024 (arXiv 2411.00999) find that in transformers the noise of the norms predicts that of the whole
    model. It is an observation, not an identity: measure exactly now and then, and `append` the pair.
    """

    def __init__(self) -> None:
        self._pairs: deque[tuple[float, float]] = deque(maxlen=FITTED)

    def append(self, step: float, exact: float, norms: float) -> bool:
        """Add an exact measurement and the norms' part in it; say whether both were positive and finite."""
        taken = 0 < exact < math.inf and 0 < norms < math.inf
        if taken:
            self._pairs.append((step, math.log(exact / norms)))
        return taken

    def clear(self) -> None:
        """Forget all pairs."""
        self._pairs.clear()

    def estimate(self, step: float, norms: float) -> Scaled:
        """Return the number for all parameters.

        Args:
            step: When the norms were measured.
            norms: Their number.
        """
        if len(self._pairs) < FITTED:
            return Scaled(None, None, f"{len(self._pairs)} exact measurements; the factor needs {FITTED}")
        if not 0 < norms < math.inf:
            return Scaled(None, None, "the norms have no noise, or none that is finite")
        steps, logs = np.array(self._pairs).T
        distance, spread = step - steps.mean(), float(np.square(steps - steps.mean()).sum())
        slope = float(((steps - steps.mean()) * logs).sum()) / spread if spread else 0.0
        rest = logs - logs.mean() - slope * (steps - steps.mean())
        degrees = FITTED - 2
        variance = float(np.square(rest).sum()) / degrees * (1 + 1 / FITTED + (distance**2 / spread if spread else 0.0))
        half = quantile(degrees) * math.sqrt(variance)
        if 2 * half > math.log(RESOLVED):
            known = math.exp(min(half, 700.0))  # beyond that it overflows
            return Scaled(None, None, f"the factor from norms to all parameters is known to {known:.3g} only")
        value = norms * math.exp(logs.mean() + slope * distance)
        return Scaled(value, value * half / NORMAL)
