"""The diagonal of RMSprop, read from its state as PyTorch applies it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from learnmech.probes.curvature.preconditioners.diagonal import NoPreconditioner
from learnmech.probes.curvature.preconditioners.moments import Moments, from_state
from learnmech.probes.curvature.preconditioners.registry import register_preconditioner


@register_preconditioner(torch.optim.RMSprop)
def rmsprop_preconditioner(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]
) -> list[Tensor] | NoPreconditioner:
    """Return P = sqrt(v) + eps of RMSprop, or sqrt(v - mean(g)^2) + eps if it is centered.

    Without bias correction: PyTorch applies none. With momentum the step is lr times a heavy ball of g / P, so P
    divides before the momentum.

    Source: Tieleman & Hinton 2012, lecture 6e; Graves 2013, "Generating sequences with recurrent neural networks",
    equation 40 (centered); `torch.optim.rmsprop`.

    Args:
        optimizer: RMSprop, in any implementation. It is only read.
        parameters: The optimizer's own parameter objects, in the order wanted.

    Returns:
        One tensor per parameter, of its shape and at least float32; or why there is none (yet).
    """
    return from_state(optimizer, parameters, _rmsprop)


def _rmsprop(moments: Moments) -> Tensor:
    squares = moments.tensor("square_avg")
    if moments.group["centered"]:
        mean = moments.tensor("grad_avg")
        squares = squares.addcmul(mean, mean, value=-1)
    return squares.sqrt().add_(moments.number("eps"))
