"""How the optimizer moves each parameter: the numbers of its rule in force at an update."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from learnmech.probes.hyperparameters import Hyperparameters

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


class UpdateRules:
    """The rules of all parameters; settings that are tensors on a device are read only when they have changed."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._watch = Hyperparameters([], {})
        self._seen: Mapping[str, Mapping[str, float]] = self._watch.by_name
        self._rules: dict[str, Rule] = {}

    def read(self, optimizers: Sequence[Optimizer], parameters: Mapping[str, Tensor]) -> Mapping[str, Rule]:
        """Return the rule of each parameter that an optimizer holds, by its name."""
        names = {id(parameter): name for name, parameter in parameters.items()}
        if names != self._names:
            self._names, self._watch = names, Hyperparameters(optimizers, names)
        self._watch.changed()
        if self._watch.by_name is not self._seen:
            self._seen = self._watch.by_name
            groups = [(optimizer, group) for optimizer in optimizers for group in optimizer.param_groups]
            made: dict[int, Rule] = {}  # one for all parameters of a group: they share their values
            self._rules = {}
            for optimizer, group in groups:
                for parameter in group["params"]:
                    name = names.get(id(parameter))
                    if name is not None:
                        values = self._seen[name]
                        if id(values) not in made:
                            made[id(values)] = _rule(optimizer, bool(group.get("maximize", False)), values)
                        self._rules[name] = made[id(values)]
        return self._rules


def _rule(optimizer: Optimizer, maximizes: bool, values: Mapping[str, float]) -> Rule:
    return Rule(
        sgd=isinstance(optimizer, torch.optim.SGD),
        normalizes=any(cls.__name__ in _NORMALIZING for cls in type(optimizer).__mro__),
        rate=values.get("learning_rate"),
        decay=values.get("weight_decay", 0.0),
        decoupled=bool(values.get("decoupled_weight_decay", 0.0)),
        momentum=values.get("momentum", 0.0),
        dampening=values.get("dampening", 0.0) if values.get("momentum") else 0.0,
        nesterov=bool(values.get("nesterov", 0.0)),
        sign=-1.0 if maximizes else 1.0,
    )
