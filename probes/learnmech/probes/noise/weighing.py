"""Whether a training weighs the pieces of its updates as the probe was told."""

import math
from collections.abc import Mapping
from dataclasses import replace

from learnmech.observables import Status
from learnmech.probes.estimators.noise import NoiseParts
from learnmech.probes.estimators.ratio import quantile
from learnmech.probes.noise.window import ExponentialWindow

SURE = 2.0
"""Standard errors, in units of the 97.5 % quantile, from which the lean of many updates contradicts the weights. Right
weights lean the other way, so that chance has to bridge more than that: see the test for how often it does."""

LEAST = 5
"""Updates of unlike pieces that are looked at first."""

BY_SIZE = (
    "larger micro-batches or processes contribute as if weighed by their sizes, not all alike: pass "
    "GradientNoiseScale(weighted=True), and units= where the loss is a mean over something else than examples"
)
ALIKE = (
    "micro-batches or processes of different sizes contribute as if weighed all alike, not by their sizes: leave out "
    "GradientNoiseScale(weighted=True), or tell by units= what the loss is a mean over"
)


class Weighing:
    """Looks at updates whose pieces differ in size, and says when their contributions contradict their weights.

    Args:
        half_life: In updates of unlike pieces.
    """

    def __init__(self, half_life: float) -> None:
        self._leans = ExponentialWindow(half_life)

    def reset(self) -> None:
        """Forget all updates."""
        self._leans.clear()

    def contradicted(self, part: NoiseParts) -> str:
        """Take the estimates of one update, and say why its weights cannot be right; '' if they can.

        Args:
            part: Estimates of the whole model.
        """
        if math.isnan(part.lean):
            return ""
        self._leans.append(part.lean, 0.0)
        moments = self._leans.moments()
        if self._leans.count < LEAST:
            return ""
        error = moments.standard_errors()[0]
        if moments.mean_a <= SURE * quantile(moments.degrees) * error:
            return ""
        return ALIKE if part.weighted else BY_SIZE


def without_estimates(parts: Mapping[str, NoiseParts], reason: str) -> dict[str, NoiseParts]:
    """Return the parts without their estimates, which the reason says why not to use."""
    return {
        scope: replace(part, grad_sq_norm=math.nan, noise_trace=math.nan, status=Status.UNDETERMINED, reason=reason)
        for scope, part in parts.items()
    }
