"""Curvature as products: what the matrix is, and how it acts on a vector."""

from learnmech.probes.curvature.operators.choice import Choice
from learnmech.probes.curvature.operators.double_backward import HessianOperator
from learnmech.probes.curvature.operators.finite_differences import DifferenceOperator
from learnmech.probes.curvature.operators.gauss_newton import GaussNewtonOperator
from learnmech.probes.curvature.operators.operator import NotTwiceDifferentiable, Operator
from learnmech.probes.curvature.operators.scaled import Scaled, flat_scale

__all__ = [
    "Choice",
    "DifferenceOperator",
    "GaussNewtonOperator",
    "HessianOperator",
    "NotTwiceDifferentiable",
    "Operator",
    "Scaled",
    "flat_scale",
]
