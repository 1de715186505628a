"""The diagonal of Adam and AdamW, read from their state as PyTorch applies it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from learnmech.probes.curvature.preconditioners.diagonal import NoPreconditioner
from learnmech.probes.curvature.preconditioners.moments import Moments, from_state
from learnmech.probes.curvature.preconditioners.registry import register_preconditioner


@register_preconditioner(torch.optim.Adam, torch.optim.AdamW)
def adam_preconditioner(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]
) -> list[Tensor] | NoPreconditioner:
    r"""Return P_t = (1 - beta1^t) (sqrt(v_t / (1 - beta2^t)) + eps) of Adam or AdamW after t steps.

    The update is -lr m_hat / (sqrt(v_hat) + eps) with m_hat = m_t / (1 - beta1^t), hence -lr P_t^(-1) m_t: with the
    momentum m_t kept apart, P_t is all that divides, and the factor 1 - beta1^t matters in early steps. With amsgrad,
    v_t is the running maximum that PyTorch divides by. Betas, eps and t are those of each parameter.

    A parameter that the optimizer does not move (not in it, or never given a gradient) has P = inf: it takes no part in
    the dynamics whose stability is asked for.

    Source: Cohen et al. 2022, "Adaptive gradient methods at the edge of stability", section 2; `torch.optim.adam`.

    Args:
        optimizer: Adam or AdamW, in any implementation (for-loop, foreach, fused, capturable). It is only read.
        parameters: The optimizer's own parameter objects, in the order wanted.

    Returns:
        One tensor per parameter, of its shape and at least float32; or why there is none (yet).
    """
    return from_state(optimizer, parameters, _adam)


def _adam(moments: Moments) -> Tensor:
    beta1, beta2 = moments.betas()
    squares = moments.tensor("max_exp_avg_sq" if moments.group["amsgrad"] else "exp_avg_sq")
    corrected: Tensor = squares / (1 - beta2**moments.steps)
    return corrected.sqrt_().add_(moments.number("eps")).mul_(1 - beta1**moments.steps)
