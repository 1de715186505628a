"""Curvature of the loss: products with its Hessian, eigenvalues, preconditioners, and a check of every result.

`top_eigenvalues(loss_fn, model, batches)` is the whole way. An `Objective`, an operator on it and `top_eigenvalues_of`
are its core, for losses that are functions of tensors already.
"""

from learnmech.probes.curvature.batches import objective_of
from learnmech.probes.curvature.check import Agreement, Comparison
from learnmech.probes.curvature.objective import NonFinite, Objective, Unmeasurable
from learnmech.probes.curvature.operators import (
    Choice,
    DifferenceOperator,
    GaussNewtonOperator,
    HessianOperator,
    NotTwiceDifferentiable,
    Operator,
    Scaled,
)
from learnmech.probes.curvature.preconditioners import (
    NoPreconditioner,
    adam_preconditioner,
    inverse_root,
    preconditioner_of,
    register_preconditioner,
    rmsprop_preconditioner,
)
from learnmech.probes.curvature.result import TopEigenvalues
from learnmech.probes.curvature.solvers.lanczos import RitzPairs, lanczos
from learnmech.probes.curvature.space import Space
from learnmech.probes.curvature.statistics import Spectrum, hessian_spectrum, hessian_spectrum_of
from learnmech.probes.curvature.top import top_eigenvalues, top_eigenvalues_of

__all__ = [
    "Agreement",
    "Choice",
    "Comparison",
    "DifferenceOperator",
    "GaussNewtonOperator",
    "HessianOperator",
    "NoPreconditioner",
    "NonFinite",
    "NotTwiceDifferentiable",
    "Objective",
    "Operator",
    "RitzPairs",
    "Scaled",
    "Space",
    "Spectrum",
    "TopEigenvalues",
    "Unmeasurable",
    "adam_preconditioner",
    "hessian_spectrum",
    "hessian_spectrum_of",
    "inverse_root",
    "lanczos",
    "objective_of",
    "preconditioner_of",
    "register_preconditioner",
    "rmsprop_preconditioner",
    "top_eigenvalues",
    "top_eigenvalues_of",
]
