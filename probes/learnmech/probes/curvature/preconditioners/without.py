"""Optimizers that divide by no diagonal, and what is meaningful for them instead."""

import torch

_SIGN = (
    "moves every weight by a length that its gradient does not set, so its step is not linear in the gradient and "
    "there is no P; sharpness, update_sharpness and loss_change stay meaningful, an edge of stability does not"
)
_FACTORED = (
    "divides by matrices (Kronecker factors), not by a diagonal; sharpness, update_sharpness, critical_sharpness and "
    "loss_change stay meaningful, and an edge would be that of P^(-1) H with its whole P"
)
_TRUST = (
    "scales the step of each layer by |w| / |step|, so its step is not linear in the gradient and there is no P; "
    "sharpness, update_sharpness and loss_change stay meaningful, an edge of stability does not"
)

WITHOUT = {
    "SGD": "divides by nothing: its edge is that of sharpness itself",
    "ASGD": "divides by nothing: sharpness itself belongs to its steps",
    "LBFGS": "divides by a dense matrix, not by a diagonal; sharpness stays meaningful, an edge of stability does not",
    "Muon": (
        "orthogonalizes the momentum of each matrix: steepest descent in the spectral norm, with no diagonal; "
        "sharpness, update_sharpness, critical_sharpness and loss_change stay meaningful, an edge of stability does not"
    ),
    "SparseAdam": (
        "keeps moments only of rows that had a gradient, each row with its own pace, so no one P belongs to a step; "
        "sharpness stays meaningful"
    ),
    "Rprop": _SIGN,
    "SignSGD": _SIGN,
    "Signum": _SIGN,
    "Lion": _SIGN,
    "Shampoo": _FACTORED,
    "DistributedShampoo": _FACTORED,
    "SOAP": _FACTORED,
    "KFAC": _FACTORED,
    "LARS": _TRUST,
    "LAMB": _TRUST,
    "Lamb": _TRUST,
    "ZeroRedundancyOptimizer": (
        "keeps second moments only of the parameters that this process updates, so no process knows the whole diagonal"
    ),
}
"""From the name of a class (theirs, or of a class they inherit from) to a clause about it. Third parties are known by
name because they are not installed here."""


def why_without(kind: type[torch.optim.Optimizer]) -> str | None:
    """Return why a kind of optimizer has no diagonal, as a sentence; None if nothing is known of it."""
    for base in kind.__mro__:
        if base.__name__ in WITHOUT:
            return f"{kind.__name__} {WITHOUT[base.__name__]}"
    return None
