"""The hyperparameters in force, read from the optimizer in PyTorch's own conventions.

They are read at the moment of the update, compared as they are, and recorded when they change: a law of step t uses
those of the update from w_t to w_(t+1). What lies on a device is read without waiting for it, and recorded at the step
that it was in force at.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Real
from operator import is_
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

Submit = Callable[[Sequence[Tensor], Callable[[list[float]], None]], None]
"""Reads tensors without waiting, and calls a function with their numbers."""

DIFFERS = "differs between parameter groups"


def is_decoupled(optimizer: Optimizer, group: Mapping[str, Any]) -> bool:
    """Tell whether weight decay acts on the weights (AdamW) instead of on the gradient (L2)."""
    if any(cls.__name__ in _DECOUPLED for cls in type(optimizer).__mro__):
        return True
    return bool(group.get("decoupled_weight_decay", False))


Settings = dict[str, "float | Tensor"]
"""The hyperparameters of one parameter group by name: numbers, and tensors that are not on the CPU as they are."""


def settings_of(optimizer: Optimizer, group: Mapping[str, Any]) -> Settings:
    """Return the declared hyperparameters of one parameter group, without waiting for a device.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1, momentum=0.9)
    >>> settings_of(optimizer, optimizer.param_groups[0])["momentum"]
    0.9
    """
    found: Settings = {}
    for key, name in _KEYS.items():
        value: Any = group.get(key)
        if _is_number(value):
            found[name] = _on_host(value)
    betas = group.get("betas")
    if isinstance(betas, Sequence) and betas and all(_is_number(beta) for beta in betas):
        found["beta1"] = _on_host(betas[0])
        if len(betas) > 1:
            found["beta2"] = _on_host(betas[1])
    if "weight_decay" in found:
        found["decoupled_weight_decay"] = float(is_decoupled(optimizer, group))
    return found


def on_device(groups: Iterable[Settings]) -> list[Tensor]:
    """List the tensors among settings, each once."""
    found = {id(value): value for settings in groups for value in settings.values() if isinstance(value, Tensor)}
    return list(found.values())


def filled(groups: Sequence[Settings], numbers: Sequence[float]) -> list[dict[str, float]]:
    """Return settings with what was read of the tensors that `on_device` lists, in its order."""
    read = dict(zip(map(id, on_device(groups)), numbers, strict=True))
    return [{k: read[id(v)] if isinstance(v, Tensor) else v for k, v in settings.items()} for settings in groups]


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1)


def _on_host(value: Any) -> "float | Tensor":
    return value if isinstance(value, Tensor) and value.device.type != "cpu" else float(value)


def _raw(group: Mapping[str, Any]) -> Iterator[Any]:
    """Yield what must differ if a hyperparameter did."""
    yield len(group["params"])
    for value in map(group.get, _RAW):
        if isinstance(value, list | tuple):
            yield from value
        else:
            yield value


def _mark(value: Any) -> object:
    """Return what two values are told apart by: numbers of NumPy, and arrays, must not be compared with whatever."""
    if isinstance(value, Tensor):
        return id(value), value._version
    return float(value) if isinstance(value, Real) else value if value is None else id(value)


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
        self._last: tuple[list[object], list[int]] = ([], [])
        self._before = self._last
        self._rates: list[int] = []
        self._fingerprint: list[object] = []
        self._kept: list[Tensor] = []
        self._moving: list[Tensor] = []
        self._reads = self._arrived = 0
        self._changes = Changes()
        self._apart: set[str] = set()
        self._groups: list[dict[str, float]] = []
        self._by_name: dict[str, dict[str, float]] | None = {}

    @property
    def by_name(self) -> Mapping[str, Mapping[str, float]]:
        """Hyperparameters in force for each parameter, by its name, without those that are still on their way."""
        if self._by_name is None:  # put together when it is asked for: a schedule may change a rate at every step
            groups = [group for optimizer in self._optimizers for group in optimizer.param_groups]
            self._by_name = {
                self._names[id(parameter)]: values
                for values, group in zip(self._groups, groups, strict=False)
                for parameter in group["params"]
                if id(parameter) in self._names
            }
        return self._by_name

    def _untouched(self) -> bool:
        """Tell whether the very objects are there that were there before: all that is looked at on most steps."""
        now: list[object] = []
        sizes: list[int] = []
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                now += group.values()
                sizes.append(len(group["params"]))
                betas = group.get("betas")
                if isinstance(betas, list):  # it may be written to
                    now += betas
        last, self._last = self._last, (now, sizes)
        self._before = last
        return not self._kept and sizes == last[1] and len(now) == len(last[0]) and all(map(is_, now, last[0]))

    def _rate(self) -> Any:
        """Return the learning rate if nothing but this has changed, to one plain number: a schedule, at every step."""
        (before, sizes), (now, others) = self._before, self._last
        if self._kept or self._moving or "learning_rate" in self._apart:
            return None
        if sizes != others or not all(sizes) or len(before) != len(now) or not self._rates:
            return None
        first = now[self._rates[0]]
        if any(type(now[place]) is not float or now[place] != first for place in self._rates):
            return None
        rest = (pair for place, pair in enumerate(zip(now, before, strict=True)) if place not in self._rates)
        return first if all(new is old for new, old in rest) else None

    def _places(self) -> list[int]:
        """List where `_untouched` has the learning rates; none unless each group has one."""
        found, begin = [], 0
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                if "lr" not in group:
                    return []
                found.append(begin + list(group).index("lr"))
                betas = group.get("betas")
                begin += len(group) + (len(betas) if isinstance(betas, list) else 0)
        return found

    def read(self, submit: Submit, record: Callable[[list[Measurement]], None]) -> None:
        """Look at the hyperparameters, and record those that changed since the last call.

        Args:
            submit: Reads tensors and calls a function with their numbers, at once or later, in order; at once where
                there are none. `Readback.submit` does.
            record: Takes the measurements, at once or later.
        """
        if self._untouched():
            return
        rate = self._rate()
        if rate is not None:
            self._fingerprint, self._by_name = [], None
            self._groups = [values | {"learning_rate": rate} for values in self._groups]
            record(self._changes.note("learning_rate", rate))
            return
        self._rates = self._places()  # a state that was loaded has its keys in another order, with the same values
        if not self._differ():
            return
        groups = [(optimizer, group) for optimizer in self._optimizers for group in optimizer.param_groups]
        settings = [settings_of(optimizer, group) for optimizer, group in groups]
        used = [k for k, (_, group) in enumerate(groups) if group["params"]]
        known: list[dict[str, float]] = [
            {k: v for k, v in own.items() if not isinstance(v, Tensor)} for own in settings
        ]
        self._groups, self._by_name = known, None
        waiting = on_device(settings)
        self._reads += 1
        turn = self._reads

        def arrived(numbers: list[float]) -> None:
            values = filled(settings, numbers[: len(waiting)])
            self._arrived = turn
            if turn == self._reads:  # else the next ones are on their way
                self._groups, self._by_name, self._moving = values, None, []
            record(self._recorded({k: values[k] for k in used}))

        # behind what is still on its way: changes are told in order
        self._moving = waiting or (self._moving if self._arrived < turn - 1 else [])
        submit(self._moving, arrived)

    def _differ(self) -> bool:
        """Tell whether a hyperparameter may have changed; tensors by identity and version, so that none is read."""
        raw = [value for optimizer in self._optimizers for group in optimizer.param_groups for value in _raw(group)]
        now = [_mark(value) for value in raw]
        if now == self._fingerprint:
            return False
        self._fingerprint = now
        self._kept = [value for value in raw if isinstance(value, Tensor)]  # nothing else can get their identities
        return True

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
