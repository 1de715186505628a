"""The hyperparameters in force, read from the optimizer in PyTorch's own conventions.

They are read at the moment of the update, compared as they are, and recorded when they change: a law of step t uses
those of the update from w_t to w_(t+1).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from learnmech.probes.changes import Changes
from learnmech.probes.groups import LIMIT
from learnmech.wire import Measurement

_KEYS = {
    "lr": "learning_rate",
    "momentum": "momentum",
    "dampening": "dampening",
    "nesterov": "nesterov",
    "eps": "epsilon",
    "weight_decay": "weight_decay",
    "alpha": "beta2",  # RMSprop's decay of the squared gradient
}
_RAW = (*_KEYS, "betas", "decoupled_weight_decay")
_OF_GROUPS = ("learning_rate", "weight_decay")
_DECOUPLED = frozenset({"AdamW", "Adafactor", "Muon", "Lion", "SGDW", "AdEMAMix", "Sophia", "StableAdamW"})
"""Optimizers that shrink the weights themselves; newer torch optimizers say so in their group."""

DIFFERS = "differs between parameter groups"


def is_decoupled(optimizer: Optimizer, group: Mapping[str, Any]) -> bool:
    """Tell whether weight decay acts on the weights (AdamW) instead of on the gradient (L2)."""
    if any(cls.__name__ in _DECOUPLED for cls in type(optimizer).__mro__):
        return True
    return bool(group.get("decoupled_weight_decay", False))


def of_group(optimizer: Optimizer, group: Mapping[str, Any]) -> dict[str, float]:
    """Return the declared hyperparameters of one parameter group.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1, momentum=0.9)
    >>> of_group(optimizer, optimizer.param_groups[0])["momentum"]
    0.9
    """
    found: dict[str, float] = {}
    for key, name in _KEYS.items():
        value: Any = group.get(key)
        if _is_number(value):
            found[name] = float(value)
    betas = group.get("betas")
    if isinstance(betas, Sequence) and betas and all(_is_number(beta) for beta in betas):
        found["beta1"] = float(betas[0])
        if len(betas) > 1:
            found["beta2"] = float(betas[1])
    if "weight_decay" in found:
        found["decoupled_weight_decay"] = float(is_decoupled(optimizer, group))
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1)


def _fingerprint(group: Mapping[str, Any]) -> tuple[object, ...]:
    """Return what must differ if a hyperparameter did; tensors by version, so that nothing is read from a device."""
    values = ((id(value), value._version) if isinstance(value, Tensor) else value for value in map(group.get, _RAW))
    return (len(group["params"]), *values)


class Hyperparameters:
    """Watches the parameter groups of one or more optimizers.

    Values are recorded for the whole model; where groups differ, each has its own in scope `group:0`, `group:1`, ...,
    counted through all optimizers, `LIMIT` groups at most. Whoever measures another scope records there what is in
    force in it, as `WeightDynamics` does: laws look at a scope's own value first.

    Args:
        optimizers: The optimizers.
        names: Names of parameters by their identity, for `by_name`.
    """

    def __init__(self, optimizers: Sequence[Optimizer], names: Mapping[int, str]) -> None:
        self._optimizers = optimizers
        self._names = names
        self._fingerprint: list[tuple[object, ...]] = []
        self._changes = Changes()
        self._apart: set[str] = set()
        self._groups: list[dict[str, float]] = []
        self._by_name: dict[str, dict[str, float]] | None = {}

    @property
    def by_name(self) -> Mapping[str, Mapping[str, float]]:
        """Hyperparameters in force for each parameter, by its name; another object when they have changed."""
        if self._by_name is None:  # put together when it is asked for: a schedule may change a rate at every step
            groups = [group for optimizer in self._optimizers for group in optimizer.param_groups]
            self._by_name = {
                self._names[id(parameter)]: values
                for values, group in zip(self._groups, groups, strict=False)
                for parameter in group["params"]
                if id(parameter) in self._names
            }
        return self._by_name

    def changed(self) -> list[Measurement]:
        """Return the measurements to record: those of hyperparameters that changed since the last call."""
        fingerprint = [_fingerprint(group) for optimizer in self._optimizers for group in optimizer.param_groups]
        if fingerprint == self._fingerprint:
            return []
        self._fingerprint, self._by_name = fingerprint, None
        groups = [(optimizer, group) for optimizer in self._optimizers for group in optimizer.param_groups]
        self._groups = [of_group(optimizer, group) for optimizer, group in groups]
        return self._recorded({k: v for k, v in enumerate(self._groups) if groups[k][1]["params"]})

    def _recorded(self, groups: Mapping[int, Mapping[str, float]]) -> list[Measurement]:
        recorded: list[Measurement] = []
        for name in dict.fromkeys(name for values in groups.values() for name in values):
            values = {group.get(name) for group in groups.values()}
            if len(values) == 1:
                recorded += self._changes.note(name, values.pop())
            else:
                recorded += self._changes.note(name, None, reason=DIFFERS)
                if name in _OF_GROUPS:
                    self._apart.add(name)  # from now on for good: a scope's own value is what laws look at first
            if name in self._apart:
                for index in list(groups)[:LIMIT]:
                    own = groups[index].get(name)
                    recorded += self._changes.note(name, own, f"group:{index}", "" if own is not None else DIFFERS)
        return recorded
