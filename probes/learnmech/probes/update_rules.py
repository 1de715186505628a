"""How the optimizer moves each parameter: the numbers of its rule in force at an update."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from learnmech.probes.hyperparameters import filled, on_device, settings_of

_NORMALIZING = frozenset({"Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "Lion"})
"""Optimizers whose update stays the same when all gradients are multiplied by one number (epsilon apart)."""


@dataclass(frozen=True, slots=True)
class Rule:
    """The update rule of one parameter, in PyTorch's conventions.

    Attributes:
        sgd: It is `torch.optim.SGD`'s: v = mu v + (1 - tau) (sign g + lambda w), w - eta v.
        normalizes: The length of the update does not depend on that of the gradient (Adam).
        rate: Learning rate eta.
        decay: Weight decay lambda; 0 if there is none.
        decoupled: Decay acts on the weights, not through the gradient.
        momentum: mu.
        dampening: tau.
        nesterov: Whether momentum is Nesterov's.
        sign: -1 if the optimizer climbs (`maximize=True`), else 1.
    """

    sgd: bool
    normalizes: bool
    rate: float | None
    decay: float
    decoupled: bool
    momentum: float
    dampening: float
    nesterov: bool
    sign: float

    @property
    def effective_exponent(self) -> int | None:
        """The k of the effective learning rate eta / |w|^k of scale-invariant weights; None where it is not known.

        The gradient of scale-invariant weights goes as 1/|w|, and an update s turns them by |s|/|w|: k is 2 if s goes
        as the gradient, 1 if it is normalized.
        """
        return 2 if self.sgd else 1 if self.normalizes else None

    @property
    def dissipation(self) -> float | None:
        """The factor of |s|^2 in the fluctuation-dissipation relation; None where there is no such relation.

        Stationary |w|^2 means <w, v> = eta/2 |v|^2 before an update and -eta/2 |v|^2 after it, v the buffer that it
        uses. With v = mu v_before + (1 - tau) f', the next <w, v> gives <w, f'> = (1 + mu) / (2 (1 - tau)) eta |v|^2,
        and s = -eta v (Yaida 2018, arXiv 1810.00004, for tau = 0).
        """
        if not self.sgd or self.nesterov or not self.rate or self.dampening >= 1.0:
            return None
        return (1.0 + self.momentum) / (2.0 * self.rate * (1.0 - self.dampening))


def is_sgd(optimizer: Optimizer) -> bool:
    """Tell whether an optimizer steps as `torch.optim.SGD` does: a subclass may not."""
    own = inspect.unwrap(type(optimizer).step)
    return isinstance(optimizer, torch.optim.SGD) and own is inspect.unwrap(torch.optim.SGD.step)


def _none(numbers: Sequence[float]) -> dict[str, Rule]:  # noqa: ARG001 (there are none)
    return {}


@dataclass(frozen=True, slots=True)
class UpdateRules:
    """The rules of all parameters at one update.

    Attributes:
        values: Copies of the settings that are tensors on a device, to be read back.
        read: Makes the rule of each parameter that an optimizer holds, by its name, from their numbers.
    """

    values: Sequence[Tensor] = ()
    read: Callable[[Sequence[float]], Mapping[str, Rule]] = _none


def rules_of(optimizers: Sequence[Optimizer], parameters: Mapping[str, Tensor]) -> UpdateRules:
    """Return the rules in force now, without waiting for a device."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    groups = [(optimizer, group) for optimizer in optimizers for group in optimizer.param_groups]
    settings = [settings_of(optimizer, group) for optimizer, group in groups]
    maximizes = [bool(group.get("maximize", False)) for _, group in groups]
    members = [[names[id(p)] for p in group["params"] if id(p) in names] for _, group in groups]

    def read(numbers: Sequence[float]) -> dict[str, Rule]:
        found: dict[str, Rule] = {}
        for k, values in enumerate(filled(settings, numbers)):
            found |= dict.fromkeys(members[k], _rule(groups[k][0], maximizes[k], values))
        return found

    return UpdateRules([value.detach().clone() for value in on_device(settings)], read)


def _rule(optimizer: Optimizer, maximizes: bool, values: Mapping[str, float]) -> Rule:
    return Rule(
        sgd=is_sgd(optimizer),
        normalizes=any(cls.__name__ in _NORMALIZING for cls in type(optimizer).__mro__),
        rate=values.get("learning_rate"),
        decay=values.get("weight_decay", 0.0),
        decoupled=bool(values.get("decoupled_weight_decay", 0.0)),
        momentum=values.get("momentum", 0.0),
        dampening=values.get("dampening", 0.0) if values.get("momentum") else 0.0,
        nesterov=bool(values.get("nesterov", 0.0)),
        sign=-1.0 if maximizes else 1.0,
    )
