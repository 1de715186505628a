"""The account of one update: charges before and after it, and what was predicted; on the device."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learnmech.probes.symmetry.drift import LinearUpdate, broken_drift, predicted_drift
from learnmech.probes.symmetry.group import Group
from learnmech.probes.symmetry.optimizers import Updates
from learnmech.probes.symmetry.sums import Reader, Sums, charges, dot

SAME = 1e-3
"""By how much the factor by which a gradient was changed after it was looked at may differ between groups. Clipping and
loss scales are one factor for all, to 1e-7; clipping by value is not."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What is known of a group before an update.

    Attributes:
        group: The group.
        before: Its charges. [units]
        sums: The sums of its parts, in order.
        updates: The update of each part; empty if it cannot be predicted.
    """

    group: Group
    before: Tensor
    sums: Sequence[Sums]
    updates: Sequence[LinearUpdate]


@dataclass(frozen=True, slots=True)
class Drift:
    """What an update did to the charges of a group, read back.

    Attributes:
        charge: The sum of the charges before it.
        change: Its change.
        predicted: The predicted change.
        difference_sq: Squared norm, over units, of measured minus predicted.
        predicted_sq: The same of predicted.
        broken: What `predicted` leaves out because the symmetry forbids it, and the gradient shows nevertheless.
        rounding_sq: Variance of `change` from rounding the new weights.
        factor: What the gradient was multiplied by between the look at it and the update.
    """

    charge: float
    change: float
    predicted: float
    difference_sq: float
    predicted_sq: float
    broken: float
    rounding_sq: float
    factor: float


def open_account(group: Group, reader: Reader, updates: Updates) -> Opened:
    """Sum up a group before an update."""
    sums = [reader.sums(part, linear=group.linear, momentum=True) for part in group.parts]
    own = [part.sign * (s.ww if s.w is None else s.w) for part, s in zip(group.parts, sums, strict=True)]
    known = [updates.by_name[part.parameter] for part in group.parts if part.parameter in updates.by_name]
    return Opened(group, torch.stack(own).sum(0), sums, known if len(known) == len(sums) else ())


def gradient_squares(opened: Opened, gradients: Mapping[str, Tensor]) -> Tensor:
    """Return |g|^2 of a group's gradients as they are now, to see whether they were changed. Float64 scalar."""
    parts = [part.of(gradients[part.parameter].detach()) for part in opened.group.parts]
    return torch.stack([dot(g, g).sum() for g in parts]).sum()


def close_account(
    opened: Opened, weights: Mapping[str, Tensor], scale: Tensor | float, changed: Mapping[str, Tensor] | None
) -> Tensor:
    """Compare with the weights after the update, on the device: the fields of `Drift`.

    Args:
        opened: What was known before it.
        weights: The weights after it.
        scale: What the gradient was multiplied by when it was looked at (a loss scale).
        changed: The gradients as the optimizer got them, if they were changed after that; None if not.

    Returns:
        Float64. [8]
    """
    group, sums = opened.group, opened.sums
    change = charges(group, weights) - opened.before
    factor: Tensor = change.new_ones(()) / scale
    if changed is not None:
        factor = (gradient_squares(opened, changed) / torch.stack([s.gg.sum() for s in sums]).sum()).sqrt()
    if opened.updates:
        predicted = predicted_drift(group, sums, opened.updates, factor)
        broken = broken_drift(group, sums, opened.updates, factor)
    else:
        predicted = broken = torch.full_like(change, torch.nan)
    return torch.stack(
        [
            opened.before.sum(),
            change.sum(),
            predicted.sum(),
            (change - predicted).square().sum(),
            predicted.square().sum(),
            broken.sum(),
            _rounding(group, sums, weights),
            factor * scale,
        ]
    )


def _rounding(group: Group, sums: Sequence[Sums], weights: Mapping[str, Tensor]) -> Tensor:
    """Return the variance of a charge from rounding weights once.

    A weight is rounded by up to eps |w| / 2 either way, with variance at most (eps w)^2 / 12; a square changes by 2 w
    times that, and sum w^4 of n weights is 3 (sum w^2)^2 / n if they are about normally distributed.
    """
    parts = []
    for part, s in zip(group.parts, sums, strict=True):
        square = torch.finfo(weights[part.parameter].dtype).eps ** 2
        own = s.ww / 12.0 if group.linear else s.ww.square() / s.elements
        parts.append(square * own.sum())
    return torch.stack(parts).sum()
