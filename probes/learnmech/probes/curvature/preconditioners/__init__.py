"""What an adaptive optimizer divides the gradient by."""

from learnmech.probes.curvature.preconditioners.adafactor import adafactor_preconditioner
from learnmech.probes.curvature.preconditioners.adagrad import adadelta_preconditioner, adagrad_preconditioner
from learnmech.probes.curvature.preconditioners.adam import adam_preconditioner
from learnmech.probes.curvature.preconditioners.adam_variants import (
    adamax_preconditioner,
    nadam_preconditioner,
    radam_preconditioner,
)
from learnmech.probes.curvature.preconditioners.diagonal import NoPreconditioner, inverse_root
from learnmech.probes.curvature.preconditioners.registry import preconditioner_of, register_preconditioner
from learnmech.probes.curvature.preconditioners.rmsprop import rmsprop_preconditioner

__all__ = [
    "NoPreconditioner",
    "adadelta_preconditioner",
    "adafactor_preconditioner",
    "adagrad_preconditioner",
    "adam_preconditioner",
    "adamax_preconditioner",
    "inverse_root",
    "nadam_preconditioner",
    "preconditioner_of",
    "radam_preconditioner",
    "register_preconditioner",
    "rmsprop_preconditioner",
]
