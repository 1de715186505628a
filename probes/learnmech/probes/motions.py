"""What an update did to every tensor: sums that are taken on the device, added up over shards, and read back."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from learnmech.probes.distributed.fsdp import is_shard, local
from learnmech.probes.distributed.shares import surplus
from learnmech.probes.estimators import Motion, gradient_sums, update_sums
from learnmech.probes.estimators.weights import real_numbers
from learnmech.probes.hyperparameters import is_decoupled
from learnmech.probes.isolation import Refusal, Skip
from learnmech.probes.probe import TrainingView

ALONE = "Parameters are sharded over processes, and the others do not measure: sums over all of them cannot be had."


@dataclass(frozen=True, slots=True)
class GradientSums:
    """What was seen of a gradient.

    Attributes:
        names: The tensors that have one.
        sums: |g|^2 and <w, g> of every held tensor, in their order; zeros where there is none. [tensors, 2]
        scale: What the gradient is multiplied by.
        method: How it was seen, if not before clipping.
        tensors: The gradients themselves with their versions, to see whether they are changed before the update; none
            if that does not matter.
    """

    names: frozenset[str]
    sums: Tensor
    scale: Tensor | float
    method: str
    tensors: Mapping[str, tuple[Tensor, int]] = field(default_factory=dict)


def seen(view: TrainingView, before: Mapping[str, Tensor]) -> GradientSums | None:
    """Take the sums of the gradient while it is there; None if none is.

    Args:
        view: The training.
        before: The weights before the update, or this process's parts of them.
    """
    gradients = dict(view.gradients or {})
    if not gradients and view.complete:  # shards are not handed out
        gradients = {name: p.grad for name, p in view.parameters.items() if p.grad is not None}
    parts = _parts(gradients)
    names = frozenset(name for name, g in parts.items() if _fits(g, before.get(name)))
    if not names:
        return None
    sums = gradient_sums(_row(before, before, names), _row(parts, before, names))
    matters = not all(is_decoupled(o, group) for o in view.optimizers for group in o.param_groups)
    tensors = {name: (gradients[name], gradients[name]._version) for name in names} if matters else {}
    return GradientSums(names, sums, view.gradient_scale, view.gradient_method, tensors)


def _applied(view: TrainingView, before: Mapping[str, Tensor], gradient: GradientSums) -> Tensor | None:
    """Return the sums of the gradient as the optimizer got it, unscaled; None if it is as it was seen.

    [tensors, 2], as in `GradientSums`. Clipping, and taking out a loss scale, write to it or put another in its place.
    """
    last = {name: _last(view.parameters.get(name), g) for name, (g, _) in gradient.tensors.items()}
    # clipping shards does not count their versions
    same = [last[n] is g and g._version == version and not is_shard(g) for n, (g, version) in gradient.tensors.items()]
    return None if all(same) else gradient_sums(_row(before, before, last), _row(_parts(last), before, last))


def _last(parameter: Tensor | None, gradient: Tensor) -> Tensor:
    """Return the gradient that a parameter was updated by: one that was taken away since is as it was left."""
    now = None if parameter is None else parameter.grad
    return now if now is not None and _fits(now, gradient) else gradient


def _parts(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: local(tensor) if is_shard(tensor) else tensor for name, tensor in tensors.items()}


def _row(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor], names: Collection[str]) -> list[Tensor]:
    """Return tensors in the order of others, with an empty one instead of each that is not named: its sums are zero."""
    return [tensors[name] if name in names else w.reshape(-1)[:0] for name, w in like.items()]


def _fits(tensor: Tensor | None, weights: Tensor | None) -> bool:
    """Tell whether two tensors can be compared: a parameter may have come, gone or been replaced."""
    return tensor is not None and weights is not None and tensor.shape == weights.shape


@dataclass(frozen=True, slots=True)
class Motions:
    """The sums of one update, on the device until they are read back.

    Attributes:
        held: The tensors held before the update.
        names: Those of them that are still there.
        sizes: How many real numbers each has, in all processes together.
        gradient: What was seen of the gradient.
        changed: Whether the gradient was changed after that; then its sums as the optimizer got it are there too.
        values: What is to be read back.
    """

    held: Sequence[str]
    names: Sequence[str]
    sizes: Mapping[str, int]
    gradient: GradientSums | None
    changed: bool
    values: Sequence[Tensor]

    def read(self, numbers: Sequence[float]) -> dict[str, Motion]:
        """Put together what was read back, with the gradient as it was seen."""
        count, gradient = len(self.held), self.gradient
        scale = 1.0
        if gradient is not None:
            scale = (
                float(gradient.scale)
                if isinstance(gradient.scale, float | int)
                else numbers[sum(v.numel() for v in self.values) - 1]
            )
            scale = scale if scale > 0.0 else math.nan
        kept = set(self.names)
        found = {}
        for i, name in enumerate(self.held):
            if name not in kept:
                continue
            w, s, along = numbers[3 * i : 3 * i + 3]
            if gradient is None or name not in gradient.names:
                found[name] = Motion(self.sizes[name], w, s, along)
                continue
            g, slope = numbers[3 * count + 2 * i : 3 * count + 2 * i + 2]
            found[name] = Motion(self.sizes[name], w, s, along, g / (scale * scale), slope / scale, 1)
        return found

    def applied(self, seen: Mapping[str, Motion], numbers: Sequence[float]) -> dict[str, Motion]:
        """Return what `read` found with the gradient as the optimizer got it; one that was cleared since was not seen.

        Args:
            seen: What `read` found.
            numbers: What was read back.
        """
        found = dict(seen)
        for i, name in enumerate(self.held if self.changed else ()):
            if name in found and found[name].gradients:
                g, slope = numbers[5 * len(self.held) + 2 * i :][:2]
                cleared = g == 0.0 < found[name].gradient_sq
                found[name] = replace(found[name], gradient_sq=g, along_gradient=slope, gradients=0 if cleared else 1)
        return found


def compared(view: TrainingView, before: Mapping[str, Tensor], gradient: GradientSums | None) -> Motions | None:
    """Compare the weights with those before the update; None if there is nothing to compare.

    Where parameters are sharded, all processes call this: the sums of their parts are added up, in one collective whose
    size depends on the model alone.

    Args:
        view: The training after the update.
        before: The weights before it, or this process's parts of them.
        gradient: What was seen of its gradient.

    Raises:
        Refusal: Parameters are sharded, and the other processes do not measure, or hold other parts.
        Skip: Parameters are sharded, and came or went.
    """
    sharded = any(map(is_shard, view.parameters.values()))
    if sharded and not view.together:
        raise Refusal(ALONE)
    after = _parts(view.parameters)
    names = [name for name, w in before.items() if _fits(after.get(name), w)]
    if sharded and not len(names) == len(before) == len(after):
        raise Skip("parameters came or went during the update")
    if not names:
        return None
    sizes = {name: real_numbers(view.parameters[name]) for name in names}
    values = [update_sums(_row(before, before, sizes), _row(after, before, sizes))]
    applied = None
    if gradient is not None:
        applied, gradient = _applied(view, before, gradient), replace(gradient, tensors={})
        values += [gradient.sums] if applied is None else [gradient.sums, applied]
    if sharded:
        values = [_added_up(view, list(before), values)]
    if gradient is not None and isinstance(gradient.scale, Tensor):
        values.append(gradient.scale)
    return Motions(list(before), names, sizes, gradient, applied is not None, values)


def _added_up(view: TrainingView, before: Sequence[str], values: Sequence[Tensor]) -> Tensor:
    """Add up over processes what each has of the sums; a tensor that several hold counts once."""
    others = set(surplus(view.parameters, view.process, view.processes))
    rows = torch.zeros(len(before), 7, dtype=values[0].dtype, device=values[0].device)
    for first, part in zip((0, 3, 5), values, strict=False):
        rows[:, first : first + part.shape[1]] = part
    for index, name in enumerate(before):
        if name in others:
            rows[index] = 0.0
    whole = view.total(rows.reshape(-1)).view(-1, 7)
    return torch.cat([whole[:, first:last].reshape(-1) for first, last in ((0, 3), (3, 5), (5, 7))])
