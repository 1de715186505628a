"""The diagonals of NAdam, RAdam and Adamax: Adam with another momentum, another step size, another norm."""

from collections.abc import Sequence

import torch
from torch import Tensor

from learnmech.probes.curvature.preconditioners.diagonal import NoPreconditioner
from learnmech.probes.curvature.preconditioners.moments import Moments, from_state
from learnmech.probes.curvature.preconditioners.registry import register_preconditioner

RECTIFIABLE = 5.0
"""Length of the averaging window from which on PyTorch's RAdam divides by second moments (Liu et al. 2020 say 4)."""


@register_preconditioner(torch.optim.NAdam)
def nadam_preconditioner(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]
) -> list[Tensor] | NoPreconditioner:
    """Return P_t = sqrt(v_t / (1 - beta2^t)) + eps of NAdam after t steps.

    The update is -lr P_t^(-1) (a_t g_t + b_t m_t) with a_t = (1 - mu_t) / (1 - mu_1...mu_t) and
    b_t = mu_(t+1) / (1 - mu_1...mu_(t+1)). Two numbers weigh gradient and momentum, so neither can be made part of P
    as in Adam: they stay with the momentum.

    Source: Dozat 2016, "Incorporating Nesterov momentum into Adam", algorithm 2; `torch.optim.nadam`.

    Args:
        optimizer: NAdam, in any implementation. It is only read.
        parameters: The optimizer's own parameter objects, in the order wanted.

    Returns:
        One tensor per parameter, of its shape and at least float32; or why there is none (yet).
    """
    return from_state(optimizer, parameters, _nadam)


@register_preconditioner(torch.optim.RAdam)
def radam_preconditioner(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]
) -> list[Tensor] | NoPreconditioner:
    """Return P_t = (1 - beta1^t) (sqrt(v_t) + eps) / (r_t sqrt(1 - beta2^t)) of RAdam after t steps.

    The update is -lr P_t^(-1) m_t, with eps inside the bias correction, unlike Adam's. r_t is the rectification. While
    the averaging window is too short for one (rho_t <= 5, the first five steps at beta2 = 0.999), RAdam is gradient
    descent with momentum and divides by 1 - beta1^t alone: so does P_t.

    Source: Liu et al. 2020, "On the variance of the adaptive learning rate and beyond", algorithm 2;
    `torch.optim.radam`.

    Args:
        optimizer: RAdam, in any implementation. It is only read.
        parameters: The optimizer's own parameter objects, in the order wanted.

    Returns:
        One tensor per parameter, of its shape and at least float32; or why there is none (yet).
    """
    return from_state(optimizer, parameters, _radam)


@register_preconditioner(torch.optim.Adamax)
def adamax_preconditioner(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]
) -> list[Tensor] | NoPreconditioner:
    """Return P_t = (1 - beta1^t) u_t of Adamax after t steps, with u_t = max(beta2 u_(t-1), |g_t| + eps).

    The update is -lr P_t^(-1) m_t.

    Source: Kingma & Ba 2015, "Adam", algorithm 2; `torch.optim.adamax`, which adds eps to |g_t|.

    Args:
        optimizer: Adamax, in any implementation. It is only read.
        parameters: The optimizer's own parameter objects, in the order wanted.

    Returns:
        One tensor per parameter, of its shape and at least float32; or why there is none (yet).
    """
    return from_state(optimizer, parameters, _adamax)


def _nadam(moments: Moments) -> Tensor:
    _, beta2 = moments.betas()
    corrected: Tensor = moments.tensor("exp_avg_sq") / (1 - beta2**moments.steps)
    return corrected.sqrt_().add_(moments.number("eps"))


def _radam(moments: Moments) -> Tensor:
    beta1, beta2 = moments.betas()
    steps = moments.steps
    correction1, correction2 = 1 - beta1**steps, 1 - beta2**steps
    longest = 2 / (1 - beta2) - 1  # rho_inf
    length = longest - 2 * steps * beta2**steps / correction2  # rho_t
    squares = moments.tensor("exp_avg_sq")
    if length <= RECTIFIABLE:
        return torch.full_like(squares, correction1)
    rectification = ((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)) ** 0.5
    return squares.sqrt().add_(moments.number("eps")).mul_(correction1 / (rectification * correction2**0.5))


def _adamax(moments: Moments) -> Tensor:
    beta1, _ = moments.betas()
    result: Tensor = moments.tensor("exp_inf") * (1 - beta1**moments.steps)
    return result
