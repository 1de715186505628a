"""What is known of an update before it happens: its coefficients and momentum buffers, read from the optimizer."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from learnmech.probes.curvature.preconditioners.wrappers import unwrapped
from learnmech.probes.hyperparameters import filled, on_device, settings_of
from learnmech.probes.probe import TrainingView
from learnmech.probes.symmetry.drift import LinearUpdate, sgd_update
from learnmech.probes.update_rules import is_sgd


@dataclass(frozen=True, slots=True)
class Updates:
    """The updates about to happen.

    Attributes:
        by_name: The update of each parameter, where it is linear.
        buffers: Momentum buffers, not copied: they are as they are before the update until it happens.
        method: What the prediction rests on.
        reason: Why there is none, '' if there is.
        added: Momentum of those whose gradient the optimizer turns into g + momentum v' in place.
    """

    by_name: Mapping[str, LinearUpdate] = field(default_factory=dict)
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    method: str = ""
    reason: str = ""
    added: Mapping[str, float] = field(default_factory=dict)

    def received(self, name: str, gradient: Tensor) -> Tensor:
        """Return a gradient as the optimizer got it, from what it has left of it."""
        momentum, buffer = self.added.get(name), self.buffers.get(name)
        if momentum is None:
            return gradient
        return gradient / (1.0 + momentum) if buffer is None else gradient - momentum * buffer


def updates_of(view: TrainingView, names: Collection[str]) -> Updates:
    """Return the updates of parameters, or why they cannot be predicted.

    Args:
        view: The training before an update.
        names: Names of the parameters.
    """
    if len(view.optimizers) != 1:
        return Updates(reason=f"there are {len(view.optimizers)} optimizers, and which of them steps is not known")
    optimizer: Any = unwrapped(view.optimizers[0])
    kind = type(optimizer)
    if not is_sgd(optimizer):
        return Updates(
            reason=f"{kind.__name__} does not move weights along the gradient: its update conserves no charge"
        )
    by_identity = {id(view.parameters[name]): name for name in names}
    updates: dict[str, LinearUpdate] = {}
    buffers: dict[str, Tensor] = {}
    added: dict[str, float] = {}
    forms = set()
    for group in optimizer.param_groups:
        members = [(p, by_identity[id(p)]) for p in group["params"] if id(p) in by_identity]
        values = _values(optimizer, group, view, [name for _, name in members])
        if not members:
            continue
        if values is None:
            return Updates(
                reason="the learning rate is on the device, and has not been read yet or changes too often to be read"
            )
        for p, name in members:
            momentum, nesterov = values["momentum"], bool(values["nesterov"])
            buffer = optimizer.state[p].get("momentum_buffer") if momentum and p in optimizer.state else None
            updates[name] = sgd_update(
                values["learning_rate"],
                momentum=momentum,
                dampening=values["dampening"],
                nesterov=nesterov,
                weight_decay=values["weight_decay"],
                first=buffer is None,
                maximize=bool(group.get("maximize", False)),
            )
            forms.add(("nesterov" if nesterov else "heavy_ball") if momentum else "sgd")
            if buffer is not None:
                buffers[name] = buffer
            if nesterov and not values["weight_decay"] and _foreach(group, p):
                added[name] = momentum
    return Updates(updates, buffers, "_and_".join(sorted(forms)), added=added)


def _foreach(group: Mapping[str, Any], parameter: Tensor) -> bool:
    """Tell whether `torch.optim.SGD` writes Nesterov's g + momentum v' over the gradient, as its foreach form does."""
    chosen = group.get("foreach")
    if chosen is None:
        chosen = not group.get("fused") and parameter.device.type != "cpu"
    return bool(chosen) and not group.get("maximize", False)


def _values(optimizer: Any, group: Mapping[str, Any], view: TrainingView, names: list[str]) -> dict[str, float] | None:
    """Return a group's hyperparameters; what is on a device only if it has been read and did not change since."""
    settings = settings_of(optimizer, group)
    if not on_device([settings]):
        return filled([settings], [])[0]
    known = next((view.hyperparameters[name] for name in names if name in view.hyperparameters), {})
    return dict(known) if settings.keys() <= known.keys() else None
