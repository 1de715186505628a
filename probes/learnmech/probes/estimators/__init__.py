"""Estimators: pure functions from tensors to numbers with error bars, without a model, a trainer or a schedule."""

from learnmech.probes.estimators.noise import NoiseParts, noise_between, noise_from_pieces, noise_from_squares
from learnmech.probes.estimators.ratio import Moments, Ratio, RatioWindow, ratio_of
from learnmech.probes.estimators.weights import Motion, angle, measure_motion, motion_sums, read_motion

__all__ = [
    "Moments",
    "Motion",
    "NoiseParts",
    "Ratio",
    "RatioWindow",
    "angle",
    "measure_motion",
    "motion_sums",
    "noise_between",
    "noise_from_pieces",
    "noise_from_squares",
    "ratio_of",
    "read_motion",
]
