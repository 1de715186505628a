"""What a `torch.optim` optimizer remembers of a parameter, read without writing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from learnmech.probes.curvature.preconditioners.diagonal import NoPreconditioner, checked, local, wide


class Missing(LookupError):
    """The optimizer's state is not what its class keeps; the message says what was expected."""


@dataclass(frozen=True, slots=True)
class Moments:
    """One parameter that has made a step.

    Attributes:
        parameter: The parameter.
        state: The optimizer's state of it.
        group: Its parameter group.
        steps: Steps it has made, which may differ between parameters.
    """

    parameter: Tensor
    state: Mapping[str, Any]
    group: Mapping[str, Any]
    steps: float

    def tensor(self, name: str) -> Tensor:
        """Return a tensor of the state, what this process holds of it, in at least float32. Not to be written.

        Raises:
            Missing: There is none.
        """
        found = self.state.get(name)
        if not isinstance(found, Tensor):
            raise Missing(f"the optimizer's state holds {sorted(self.state)}, expected {name!r}")
        return wide(found)

    def number(self, name: str) -> float:
        """Return a number of the group, also where it is kept as a tensor."""
        return float(self.group[name])

    def betas(self) -> tuple[float, float]:
        """Return beta1 and beta2."""
        beta1, beta2 = self.group["betas"]
        return float(beta1), float(beta2)


Diagonal = Callable[[Moments], Tensor]
"""From what is remembered of a parameter, its diagonal: a new tensor."""


def from_state(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], diagonal: Diagonal
) -> list[Tensor] | NoPreconditioner:
    """Return the diagonal of every parameter, inf for one that the optimizer does not move.

    Not moved (not in the optimizer, or never given a gradient) is what takes no part in the dynamics whose stability
    is asked for.

    Args:
        optimizer: It is only read.
        parameters: Its own parameter objects, in the order wanted.
        diagonal: The diagonal of one parameter that has made a step.

    Returns:
        One tensor per parameter, of the shape this process holds; or why there is none (yet).
    """
    name = type(optimizer).__name__
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    # `state` is a defaultdict: .get, because indexing would add entries to the user's optimizer.
    states: list[Mapping[str, Any]] = [optimizer.state.get(p) or {} for p in parameters]
    counts = _steps(states)
    if not any(id(p) in groups for p in parameters):
        return NoPreconditioner(f"none of the {len(parameters)} parameters is in the {name} optimizer", yet=False)
    if not any(counts):
        return NoPreconditioner(f"not yet: {name} has made no step, so it has no second moments", yet=True)
    result = []
    for p, state, steps in zip(parameters, states, counts, strict=True):
        group = groups.get(id(p))
        if group is None or not steps:
            result.append(torch.full_like(wide(p), torch.inf))
            continue
        if p.is_complex():
            return NoPreconditioner(
                f"{name} divides real and imaginary part of a complex parameter by different numbers", yet=False
            )
        try:
            result.append(diagonal(Moments(p, state, group, steps)))
        except Missing as error:
            return NoPreconditioner(str(error), yet=False)
    zero_epsilon = any(group.get("eps") == 0.0 for group in groups.values())
    return checked(result, parameters, name, ": eps is 0 and so is a second moment" if zero_epsilon else "")


def _steps(states: Sequence[Mapping[str, Any]]) -> list[float]:
    """Read the step counts with one transfer per device: fused and capturable ones live on the accelerator."""
    counts: list[float] = [0.0] * len(states)
    tensors: dict[torch.device, list[tuple[int, Tensor]]] = {}
    for index, state in enumerate(states):
        step = state.get("step", 0)
        if isinstance(step, Tensor):
            plain = local(step)
            tensors.setdefault(plain.device, []).append((index, plain.reshape(())))
        else:
            counts[index] = float(step)
    for found in tensors.values():
        values = torch.stack([step.to(torch.float32) for _, step in found]).tolist()
        for (index, _), value in zip(found, values, strict=True):
            counts[index] = value
    return counts
