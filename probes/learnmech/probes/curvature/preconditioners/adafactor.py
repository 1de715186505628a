"""The diagonal of Adafactor: factored second moments and the relative step size of each tensor."""

from collections.abc import Sequence

import torch
from torch import Tensor

from learnmech.probes.curvature.preconditioners.diagonal import NoPreconditioner, local, sharded
from learnmech.probes.curvature.preconditioners.moments import Moments, from_state
from learnmech.probes.curvature.preconditioners.registry import register_preconditioner


@register_preconditioner(torch.optim.Adafactor)
def adafactor_preconditioner(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]
) -> list[Tensor] | NoPreconditioner:
    r"""Return P = max(sqrt(V), eps1) / max(eps2, RMS(w)) of Adafactor.

    V = R C / max(mean(R), eps1) for a tensor of two dimensions or more, R [.., n, 1] and C [.., 1, m] being averages of
    row and column means of g^2; for a vector or a number it is their plain average. The update is

        -rho_t P^(-1) g / max(1, RMS(g / sqrt(V)) / d),   rho_t = min(lr, 1 / sqrt(t)).

    So P is the diagonal with the relative step size RMS(w) of each tensor, without which there would be no one spectrum
    for all tensors; rho_t is the step size, in place of lr; and the clipping at d is left out: it depends on the last
    gradient, only ever shortens the step of a whole tensor, and is off near a fixed point, where g is small beside
    sqrt(V). RMS(w) is that of the present weights, which the next step uses.

    Source: Shazeer & Stern 2018, "Adafactor", algorithms 4 and 5; `torch.optim.Adafactor`.

    Args:
        optimizer: Adafactor, in any implementation. It is only read.
        parameters: The optimizer's own parameter objects, in the order wanted.

    Returns:
        One tensor per parameter, of its shape and at least float32; or why there is none (yet). Under sharding there
        is none: row and column means and RMS(w) span processes.
    """
    if any(sharded(p) for p in parameters):
        return NoPreconditioner(
            "Adafactor's row and column means span the processes among which parameters are sharded", yet=False
        )
    return from_state(optimizer, parameters, _adafactor)


def _adafactor(moments: Moments) -> Tensor:
    parameter = local(moments.parameter)
    epsilon1, epsilon2 = moments.group["eps"]
    epsilon1 = torch.finfo(parameter.dtype).eps if epsilon1 is None else float(epsilon1)
    if parameter.dim() > 1:
        rows, columns = moments.tensor("row_var"), moments.tensor("col_var")
        squares = (rows @ columns).div_(rows.mean(dim=-2, keepdim=True).clamp_(min=epsilon1))
    else:
        squares = moments.tensor("variance").clone()
    magnitude = torch.linalg.vector_norm(parameter, dtype=squares.dtype) / max(parameter.numel(), 1) ** 0.5
    return squares.clamp_(min=epsilon1 * epsilon1).sqrt_().div_(magnitude.clamp(min=float(epsilon2)))
