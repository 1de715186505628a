"""Curvature of the loss: exact Hessian-vector products, Lanczos, preconditioners, and a check of every result.

`top_eigenvalues(loss_fn, model, batches)` is the whole way. `HessianOperator` and `top_eigenvalues_of` are its core,
for losses that are functions of tensors already.
"""

from learnmech.probes.curvature.check import Agreement, Comparison
from learnmech.probes.curvature.counting import examples
from learnmech.probes.curvature.hvp import HessianOperator, NonFinite, NotTwiceDifferentiable
from learnmech.probes.curvature.lanczos import RitzPairs, lanczos
from learnmech.probes.curvature.preconditioner import (
    NoPreconditioner,
    adam_preconditioner,
    inverse_root,
    preconditioner_of,
    rmsprop_preconditioner,
)
from learnmech.probes.curvature.result import TopEigenvalues
from learnmech.probes.curvature.top import hessian_of, top_eigenvalues, top_eigenvalues_of

__all__ = [
    "Agreement",
    "Comparison",
    "HessianOperator",
    "NoPreconditioner",
    "NonFinite",
    "NotTwiceDifferentiable",
    "RitzPairs",
    "TopEigenvalues",
    "adam_preconditioner",
    "examples",
    "hessian_of",
    "inverse_root",
    "lanczos",
    "preconditioner_of",
    "rmsprop_preconditioner",
    "top_eigenvalues",
    "top_eigenvalues_of",
]
