"""What stability theory needs of a loss along one direction: the update, the gradient, or a few top eigenvectors."""

from learnmech.probes.curvature.stability.alignment import Alignment, alignment
from learnmech.probes.curvature.stability.crossing import Crossing, first_rise
from learnmech.probes.curvature.stability.quadratic import QuadraticModel, quadratic_model
from learnmech.probes.curvature.stability.rounding import Rounding, rounding_error, smallest_rounding
from learnmech.probes.curvature.stability.update import AppliedUpdate, applied_update

__all__ = [
    "Alignment",
    "AppliedUpdate",
    "Crossing",
    "QuadraticModel",
    "Rounding",
    "alignment",
    "applied_update",
    "first_rise",
    "quadratic_model",
    "rounding_error",
    "smallest_rounding",
]
