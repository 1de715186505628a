"""Curvature as products: what the matrix is, and how it acts on a vector."""

from learnmech.probes.curvature.operators.choice import Choice
from learnmech.probes.curvature.operators.double_backward import HessianOperator
from learnmech.probes.curvature.operators.operator import NotTwiceDifferentiable, Operator
from learnmech.probes.curvature.operators.scaled import Scaled, flat_scale

__all__ = ["Choice", "HessianOperator", "NotTwiceDifferentiable", "Operator", "Scaled", "flat_scale"]
