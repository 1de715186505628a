"""Which tensors the loss does not depend on the scale of: found by what their gradients have shown so far."""

import math
from collections import deque
from collections.abc import Mapping

from learnmech.probes.estimators import Motion

CERTIFIED = 1e-4
"""Largest |<w, g>|/(|w||g|) of a scale-invariant tensor in float32: norm layers' epsilon leaves up to 3e-5, tensors
without the symmetry show 1e-2 and above."""
CERTIFIED_COARSE = 1e-3
"""The same where half precision or TF32 rounds the gradient."""

LOOKS = 5
"""Measurements in a row that must stay below it: one small inner product may be chance."""


class Certificates:
    """The last looks at the cosine between each tensor and its gradient.

    References:
        van Laarhoven 2017, arXiv 1706.05350; <w, g> = 0: Kunin et al. 2021, arXiv 2012.04728, section 3.
    """

    def __init__(self) -> None:
        self._looks: dict[str, deque[float]] = {}

    def look(self, motions: Mapping[str, Motion]) -> None:
        """Take in the motions of tensors; those without a gradient, or of zeros, tell nothing."""
        for name, motion in motions.items():
            value = motion.scale_invariance
            if math.isfinite(value):
                self._looks.setdefault(name, deque(maxlen=LOOKS)).append(value)

    def certified(self, *, precise: bool) -> dict[str, float]:
        """Return the newest cosine of each tensor whose last `LOOKS` cosines all were zero up to rounding.

        Args:
            precise: False where half precision or TF32 is in the training step.
        """
        limit = CERTIFIED if precise else CERTIFIED_COARSE
        return {name: looks[-1] for name, looks in self._looks.items() if len(looks) == LOOKS and max(looks) < limit}
