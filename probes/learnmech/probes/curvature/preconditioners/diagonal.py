"""The diagonal by which an adaptive optimizer divides the gradient, read from its state as PyTorch applies it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Diagonal = Callable[[dict[str, Any], dict[str, Any], float], Tensor]
"""From the state of a parameter, its group and its step count, the diagonal."""


@dataclass(frozen=True, slots=True)
class NoPreconditioner:
    """There is no preconditioner to be had.

    Attributes:
        reason: Why, as a sentence.
        yet: True if there will be one after the next optimizer steps.
    """

    reason: str
    yet: bool


def preconditioner_of(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]
) -> list[Tensor] | NoPreconditioner:
    """Return the preconditioner of Adam, AdamW or RMSprop; for any other optimizer say that there is none.

    Args:
        optimizer: A `torch.optim` optimizer. It is only read.
        parameters: The optimizer's own parameter objects, in the order wanted.

    Returns:
        The diagonal P, one tensor per parameter, or why there is none.
    """
    if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        return adam_preconditioner(optimizer, parameters)
    if isinstance(optimizer, torch.optim.RMSprop):
        return rmsprop_preconditioner(optimizer, parameters)
    name = type(optimizer).__name__
    return NoPreconditioner(f"{name} has no verified preconditioner; known are Adam, AdamW and RMSprop", yet=False)


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

    def diagonal(state: dict[str, Any], group: dict[str, Any], steps: float) -> Tensor:
        beta1, beta2 = (float(beta) for beta in group["betas"])
        squares = wide(state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"])
        corrected: Tensor = squares / (1 - beta2**steps)
        return corrected.sqrt_().add_(float(group["eps"])).mul_(1 - beta1**steps)

    return _diagonals(optimizer, parameters, diagonal, needs="exp_avg_sq")


def rmsprop_preconditioner(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]
) -> list[Tensor] | NoPreconditioner:
    """Return P = sqrt(v) + eps of RMSprop, or sqrt(v - mean(g)^2) + eps if it is centered.

    Without bias correction: PyTorch applies none.

    Args:
        optimizer: RMSprop. It is only read.
        parameters: The optimizer's own parameter objects, in the order wanted.

    Returns:
        One tensor per parameter, of its shape and at least float32; or why there is none (yet).
    """

    def diagonal(state: dict[str, Any], group: dict[str, Any], _: float) -> Tensor:
        squares = wide(state["square_avg"])
        if group["centered"]:
            mean = wide(state["grad_avg"])
            squares = squares.addcmul(mean, mean, value=-1)
        else:
            squares = squares.clone()
        return squares.sqrt_().add_(float(group["eps"]))

    return _diagonals(optimizer, parameters, diagonal, needs="square_avg")


def wide(tensor: Tensor) -> Tensor:
    """Return a detached tensor in at least float32."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def inverse_root(diagonal: Sequence[Tensor]) -> list[Tensor]:
    """Return P^(-1/2): the scale that turns H into the symmetric matrix with the spectrum of P^(-1) H; 1/inf is 0."""
    return [wide(p).rsqrt() for p in diagonal]


def _diagonals(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], diagonal: Diagonal, needs: str
) -> list[Tensor] | NoPreconditioner:
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    # `state` is a defaultdict: .get, because indexing would add entries to the user's optimizer.
    states: list[dict[str, Any] | None] = [optimizer.state.get(p) for p in parameters]
    steps = _steps([state for state in states if state])
    if not any(steps):
        name = type(optimizer).__name__
        if not any(id(p) in groups for p in parameters):
            return NoPreconditioner(f"none of the {len(parameters)} parameters is in the {name} optimizer", yet=False)
        return NoPreconditioner(f"not yet: {name} has made no step, so it has no second moments", yet=True)
    remaining = iter(steps)
    result = []
    for p, state in zip(parameters, states, strict=True):
        count = next(remaining) if state else 0.0
        group = groups.get(id(p))
        if state and count and group is not None:
            if needs not in state:
                return NoPreconditioner(f"the optimizer's state holds {sorted(state)}, expected {needs!r}", yet=False)
            result.append(diagonal(state, group, count))
        else:
            result.append(torch.full_like(wide(p), torch.inf))
    if any(float(group["eps"]) == 0.0 for group in groups.values()) and any(bool((d == 0).any()) for d in result):
        return NoPreconditioner("eps is 0 and a second moment is 0, so the optimizer itself divides by zero", yet=True)
    return result


def _steps(states: Sequence[dict[str, Any]]) -> list[float]:
    """Read the step counts with one transfer per device: fused and capturable ones live on the accelerator."""
    counts: list[float] = [0.0] * len(states)
    tensors: dict[torch.device, list[tuple[int, Tensor]]] = {}
    for index, state in enumerate(states):
        step = state.get("step", 0)
        if isinstance(step, Tensor):
            tensors.setdefault(step.device, []).append((index, step.detach().reshape(())))
        else:
            counts[index] = float(step)
    for found in tensors.values():
        values = torch.stack([step.to(torch.float32) for _, step in found]).tolist()
        for (index, _), value in zip(found, values, strict=True):
            counts[index] = value
    return counts
