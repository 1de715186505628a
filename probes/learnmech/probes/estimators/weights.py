"""Norms, updates and angles of weight tensors: per tensor and for all of them, with one read-back."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

GROUP_CPU = 2**18
"""Numbers measured together on the CPU: their float64 copies stay in the cache. 301 tensors of 5 million numbers took
51 ms so, 90 ms in groups of 2^20 and 190 ms all at once, on one core."""
GROUP = 2**22
"""Numbers measured together on an accelerator: fewer launches, at 100 MB of float64 copies."""


@dataclass(frozen=True, slots=True)
class Motion:
    """Weights w and what an update did to them.

    Attributes:
        weight_norm: |w| before the update.
        update_norm: |w' - w|.
        relative_update: |w' - w| / |w|; NaN if w is zero.
        angular_update: Angle between w and w' in radians; NaN if one of them is zero.
        scale_invariance: |<w, g>| / (|w| |g|), zero if the loss does not depend on the scale of w; NaN without a
            gradient, or if one of them is zero.
    """

    weight_norm: float
    update_norm: float
    relative_update: float
    angular_update: float
    scale_invariance: float


def angle(a: float, b: float, c: float) -> float:
    """Return the angle between two sides of lengths a and b when the third side has length c, in radians.

    The half-angle form, sin^2(angle / 2) = (c^2 - (a - b)^2) / (4 a b), with c^2 - (a - b)^2 taken as a product (Kahan,
    "Miscalculating area and angles of a needle-like triangle", section 5). The arc cosine of <w, w'> / (|w| |w'|) in
    float32 reads 0 below 3e-4 rad, where updates live.

    >>> round(angle(1.0, 1.0, 2e-6), 12)
    2e-06
    """
    if not (a > 0.0 and b > 0.0):
        return math.nan
    long, short = max(a, b), min(a, b)
    difference = long - short
    opposite = max(c - difference, 0.0) * (c + difference)  # below zero only by rounding: w and w' are parallel
    adjacent = (short + long + c) * max((short - c) + long, 0.0)
    return 2.0 * math.atan2(math.sqrt(opposite), math.sqrt(adjacent))


def measure_motion(
    before: Sequence[Tensor], after: Sequence[Tensor] | None = None, gradients: Sequence[Tensor | None] | None = None
) -> tuple[list[Motion], Motion]:
    """Measure norms, update norms, angles and scale invariance of tensors, and of all of them as one vector.

    Args:
        before: Weights w. Any shapes, float types and devices.
        after: Weights after the update, same shapes; None: updates and angles are NaN.
        gradients: Gradients g at w. None for a tensor: zero, its scale invariance is NaN. None: the same for all.

    Returns:
        The motion of each tensor, and of the whole.
    """
    return read_motion(motion_sums(before, after, gradients).tolist())


def motion_sums(
    before: Sequence[Tensor], after: Sequence[Tensor] | None = None, gradients: Sequence[Tensor | None] | None = None
) -> Tensor:
    """Return the sums that `read_motion` takes, on the device of the first tensor, without waiting for the device.

    All arithmetic is in float64, of groups of tensors at a time: |w|^2, |w'|^2, |w' - w|^2, <w, g>, |g|^2. The
    difference in float32 would not do: where w is stretched a lot and turned a little, rounding swallows the turn.

    Args:
        before: As in `measure_motion`.
        after: The same.
        gradients: The same.

    Returns:
        Float64 tensor. [tensors, 5]

    Raises:
        ValueError: The lists differ in length, or there are no tensors.
    """
    for name, other in (("after", after), ("gradients", gradients)):
        if other is not None and len(other) != len(before):
            raise ValueError(f"{len(before)} tensors before and {len(other)} in {name}; expected as many")
    if not before:
        raise ValueError("no tensors came; expected one or more")
    device = before[0].device
    with torch.no_grad():
        rows = []
        for group in _groups(before):
            w = [before[index].double() for index in group]
            v = None if after is None else [after[index].double() for index in group]
            g = None if gradients is None else [gradients[index] for index in group]
            columns = _columns(w, v, g)
            rows.append(torch.stack([torch.stack([entry.to(device) for entry in column]) for column in columns], dim=1))
        return torch.cat(rows)


def read_motion(sums: Sequence[Sequence[float]]) -> tuple[list[Motion], Motion]:
    """Turn the sums of `motion_sums`, read back as lists, into the motion of each tensor and of the whole."""
    return [_motion(row) for row in sums], _motion([math.fsum(column) for column in zip(*sums, strict=True)])


def _groups(tensors: Sequence[Tensor]) -> Iterator[list[int]]:
    """Cut the tensors, in order, into groups that are measured together, by what their float64 copies may take."""
    limit = GROUP_CPU if tensors[0].device.type == "cpu" else GROUP
    group: list[int] = []
    held = 0
    for index, tensor in enumerate(tensors):
        if group and held + tensor.numel() > limit:
            yield group
            group, held = [], 0
        group.append(index)
        held += tensor.numel()
    yield group


def _columns(
    w: list[Tensor], v: list[Tensor] | None, gradients: Sequence[Tensor | None] | None
) -> list[Sequence[Tensor]]:
    unknown, nothing = [x.new_full((), math.nan) for x in w], [x.new_zeros(()) for x in w]
    moved: list[Sequence[Tensor]] = [unknown, unknown]
    if v is not None:
        moved = [_squares(v), _squares(torch._foreach_sub(v, w))]  # pyright: ignore[reportPrivateImportUsage]
    if gradients is None:
        return [_squares(w), *moved, nothing, nothing]
    g = [torch.zeros_like(x) if y is None else y.detach().double() for x, y in zip(w, gradients, strict=True)]
    # not in place: float64 weights are the model's own tensors here
    products = torch._foreach_mul(w, g)  # pyright: ignore[reportPrivateImportUsage]
    return [_squares(w), *moved, [product.sum() for product in products], _squares(g)]


def _squares(tensors: Sequence[Tensor]) -> list[Tensor]:
    norms: Sequence[Tensor] = torch._foreach_norm(list(tensors))  # pyright: ignore[reportPrivateImportUsage]
    return [norm.square() for norm in norms]


def _motion(row: Sequence[float]) -> Motion:
    before, after, difference, along, gradient = row
    weight = math.sqrt(before)
    update = math.sqrt(difference)
    scale = math.sqrt(before * gradient)
    return Motion(
        weight_norm=weight,
        update_norm=update,
        relative_update=update / weight if weight > 0.0 else math.nan,
        angular_update=angle(weight, math.sqrt(after), update),
        scale_invariance=abs(along) / scale if scale > 0.0 else math.nan,
    )
