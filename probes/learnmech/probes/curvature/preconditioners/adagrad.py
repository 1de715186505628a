"""The diagonals of Adagrad and Adadelta, read from their state as PyTorch applies them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from learnmech.probes.curvature.preconditioners.diagonal import NoPreconditioner
from learnmech.probes.curvature.preconditioners.moments import Moments, from_state
from learnmech.probes.curvature.preconditioners.registry import register_preconditioner


@register_preconditioner(torch.optim.Adagrad)
def adagrad_preconditioner(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]
) -> list[Tensor] | NoPreconditioner:
    """Return P = sqrt(sum of g^2 + initial value) + eps of Adagrad.

    The update is -lr_t P^(-1) g_t with lr_t = lr / (1 + (t - 1) lr_decay): the decay belongs to the learning rate, not
    to P.

    Source: Duchi, Hazan & Singer 2011, "Adaptive subgradient methods", figure 1; `torch.optim.adagrad`.

    Args:
        optimizer: Adagrad, in any implementation. It is only read.
        parameters: The optimizer's own parameter objects, in the order wanted.

    Returns:
        One tensor per parameter, of its shape and at least float32; or why there is none (yet).
    """
    return from_state(optimizer, parameters, _adagrad)


@register_preconditioner(torch.optim.Adadelta)
def adadelta_preconditioner(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]
) -> list[Tensor] | NoPreconditioner:
    """Return P_t = sqrt(v_t + eps) / sqrt(d_t + eps) of Adadelta, v and d being averages of g^2 and of its own steps^2.

    Step t + 1 is -lr P^(-1) g with v_(t+1) and d_t: d is taken as the next step uses it, because what step t divided
    by, d_(t-1), is gone. P is a diagonal like any other while it is frozen, but d grows with the steps themselves, so
    an instability changes P as fast as it grows (in 1 / (1 - rho) = 10 steps): no threshold is claimed.

    Source: Zeiler 2012, "ADADELTA", algorithm 1; `torch.optim.adadelta`.

    Args:
        optimizer: Adadelta, in any implementation. It is only read.
        parameters: The optimizer's own parameter objects, in the order wanted.

    Returns:
        One tensor per parameter, of its shape and at least float32; or why there is none (yet).
    """
    return from_state(optimizer, parameters, _adadelta)


def _adagrad(moments: Moments) -> Tensor:
    return moments.tensor("sum").sqrt().add_(moments.number("eps"))


def _adadelta(moments: Moments) -> Tensor:
    epsilon = moments.number("eps")
    squares, steps = moments.tensor("square_avg") + epsilon, moments.tensor("acc_delta") + epsilon
    return squares.sqrt_().div_(steps.sqrt_())
