"""Squared norms of the gradients of single examples, from hooks on one ordinary forward and backward pass."""

from learnmech.probes.noise.per_example.layers import norm_parameters
from learnmech.probes.noise.per_example.norms import METHOD, NormFactor, Scaled
from learnmech.probes.noise.per_example.per_example import PerExample

__all__ = ["METHOD", "NormFactor", "PerExample", "Scaled", "norm_parameters"]
