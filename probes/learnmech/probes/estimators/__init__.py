"""Estimators: pure functions from tensors to numbers with error bars, without a model, a trainer or a schedule."""

from learnmech.probes.estimators.noise import Design, NoiseParts, noise_between, noise_from_pieces, noise_parts
from learnmech.probes.estimators.ratio import Moments, Ratio, quantile, ratio_now, ratio_of
from learnmech.probes.estimators.weights import Motion, angle, gradient_sums, total, update_sums

__all__ = [
    "Design",
    "Moments",
    "Motion",
    "NoiseParts",
    "Ratio",
    "angle",
    "gradient_sums",
    "noise_between",
    "noise_from_pieces",
    "noise_parts",
    "quantile",
    "ratio_now",
    "ratio_of",
    "total",
    "update_sums",
]
