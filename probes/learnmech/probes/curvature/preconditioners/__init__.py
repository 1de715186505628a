"""What an adaptive optimizer divides the gradient by."""

from learnmech.probes.curvature.preconditioners.diagonal import (
    NoPreconditioner,
    adam_preconditioner,
    inverse_root,
    preconditioner_of,
    rmsprop_preconditioner,
)

__all__ = [
    "NoPreconditioner",
    "adam_preconditioner",
    "inverse_root",
    "preconditioner_of",
    "rmsprop_preconditioner",
]
