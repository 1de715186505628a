"""Norms, updates and angles of weights: a few sums per tensor, added up over any scope, with one read-back."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 2**16
"""Numbers taken at once on the CPU: the float64 copies of two blocks (1 MB) stay in the cache. For the 430 thousand
weights of a small transformer all sums took 1.9 ms so, 2.7 ms in blocks of 2^14, and 22 ms by float64 copies of whole
groups of tensors; for 5 million weights 54, 54 and 202 ms (one core, caches emptied before)."""
GROUP = 2**24
"""Numbers taken at once on an accelerator: few launches, at 64 MB of differences or products."""

Sums = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]


@dataclass(frozen=True, slots=True)
class Motion:
    """Weights w, an update s = w' - w of them and the gradient g at w, as sums that add up over tensors.

    Attributes:
        numbers: How many real numbers w has, n.
        weight_sq: |w|^2.
        update_sq: |s|^2.
        along_update: <w, s>.
        gradient_sq: |g|^2.
        along_gradient: <w, g>.
        gradients: How many of the tensors had a gradient; where there is none, it counts as zero.
    """

    numbers: int = 0
    weight_sq: float = 0.0
    update_sq: float = 0.0
    along_update: float = 0.0
    gradient_sq: float = 0.0
    along_gradient: float = 0.0
    gradients: int = 0

    @property
    def growth(self) -> float:
        """|w + s|^2 - |w|^2, to the last digits however small s is."""
        return 2.0 * self.along_update + self.update_sq

    @property
    def weight_norm(self) -> float:
        """|w|."""
        return math.sqrt(self.weight_sq)

    @property
    def weight_rms(self) -> float:
        """|w| / sqrt(n): the size of a typical weight."""
        return math.sqrt(self.weight_sq / self.numbers) if self.numbers else math.nan

    @property
    def update_norm(self) -> float:
        """|s|."""
        return math.sqrt(self.update_sq)

    @property
    def gradient_norm(self) -> float:
        """|g|; NaN if no tensor had a gradient."""
        return math.sqrt(self.gradient_sq) if self.gradients else math.nan

    @property
    def relative_update(self) -> float:
        """|s| / |w|; NaN if w is zero."""
        return math.sqrt(self.update_sq / self.weight_sq) if self.weight_sq > 0.0 else math.nan

    @property
    def angular_update(self) -> float:
        """Angle between w and w + s in radians; NaN if one of them is zero."""
        return angle(self.weight_sq, self.update_sq, self.along_update)

    @property
    def scale_invariance(self) -> float:
        """|<w, g>| / (|w| |g|), zero if the loss does not depend on the scale of w; NaN if w or g is zero."""
        scale = math.sqrt(self.weight_sq) * math.sqrt(self.gradient_sq)
        return abs(self.along_gradient) / scale if scale > 0.0 else math.nan


def angle(weight_sq: float, update_sq: float, along: float) -> float:
    """Return the angle between w and w' = w + s, in radians, from |w|^2, |s|^2 and <w, s>; NaN if w or w' is zero.

    The half-angle form, tan^2(angle / 2) = (|s|^2 - (|w'| - |w|)^2) / ((|w'| + |w|)^2 - |s|^2), with differences of
    squares as products (Kahan, "Miscalculating area and angles of a needle-like triangle", section 5), and
    |w'| - |w| = (2 <w, s> + |s|^2) / (|w'| + |w|), which loses no digits when s is small. The arc cosine of
    <w, w'> / (|w| |w'|) in float32 reads 0 below 3e-4 rad, where updates live.

    >>> round(angle(1.0, 1e-12, 0.0), 12)
    1e-06
    """
    growth = 2.0 * along + update_sq  # |w'|^2 - |w|^2
    before, after, side = math.sqrt(weight_sq), math.sqrt(max(weight_sq + growth, 0.0)), math.sqrt(update_sq)
    if not (before > 0.0 and after > 0.0):
        return math.nan
    difference = abs(growth) / (before + after)
    opposite = max(side - difference, 0.0) * (side + difference)  # below zero only by rounding: s is along w
    adjacent = max(before + after - side, 0.0) * (before + after + side)
    return 2.0 * math.atan2(math.sqrt(opposite), math.sqrt(adjacent))


def total(motions: Iterable[Motion]) -> Motion:
    """Return the motion of several tensors taken as one vector."""
    parts = list(motions)
    if len(parts) == 1:
        return parts[0]
    return Motion(
        sum(part.numbers for part in parts),
        summed([part.weight_sq for part in parts]),
        summed([part.update_sq for part in parts]),
        summed([part.along_update for part in parts]),
        summed([part.gradient_sq for part in parts]),
        summed([part.along_gradient for part in parts]),
        sum(part.gradients for part in parts),
    )


def summed(values: Iterable[float]) -> float:
    """Return the exact sum of numbers, rounded once; NaN where it is not a number or beyond float64."""
    try:
        return math.fsum(values)
    except (ValueError, OverflowError):  # infinities of both signs, or a sum beyond float64
        return math.nan


def update_sums(before: Sequence[Tensor], after: Sequence[Tensor]) -> Tensor:
    """Return |w|^2, |s|^2 and <w, s> of each tensor, s = w' - w, without waiting for the device.

    On the CPU everything is in float64. On accelerators squares are added up in float64 by fused kernels, of float32
    numbers: s is then right to 6e-8 of each of its elements, and <w, s> = (|w'|^2 - |w|^2 - |s|^2) / 2.

    Args:
        before: Weights w. Real or complex, strided, any shapes and float types.
        after: Weights w', the same shapes.

    Returns:
        Float64 (float32 on devices that have no float64), on the device of the weights. [tensors, 3]

    Raises:
        ValueError: The lists differ in length, or there are no tensors.
    """  # noqa: DOC502 (raised by _by_device)
    return _by_device(before, after, _update_sums_cpu, _update_sums_fused)


def gradient_sums(weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Return |g|^2 and <w, g> of each tensor, without waiting for the device.

    Args:
        weights: Weights w, as in `update_sums`.
        gradients: Gradients g, the same shapes; sparse ones are made dense.

    Returns:
        As `update_sums`. <w, g> of complex numbers is the real part. [tensors, 2]

    Raises:
        ValueError: The lists differ in length, or there are no tensors.
    """  # noqa: DOC502 (raised by _by_device)
    return _by_device(weights, gradients, _gradient_sums_cpu, _gradient_sums_fused)


def real_numbers(tensor: Tensor) -> int:
    """Return how many real numbers a tensor holds: two for each complex one."""
    return tensor.numel() * (2 if tensor.is_complex() else 1)


def _by_device(first: Sequence[Tensor], second: Sequence[Tensor], on_cpu: Sums, fused: Sums) -> Tensor:
    """Take the sums on each device, and put the rows together on an accelerator if there is one."""
    if len(first) != len(second):
        raise ValueError(f"{len(first)} tensors came, and {len(second)} to go with them; expected as many")
    if not first:
        raise ValueError("no tensors came; expected one or more")
    with torch.no_grad():
        places: dict[torch.device, list[int]] = {}
        for index, tensor in enumerate(first):
            places.setdefault(tensor.device, []).append(index)
        found: dict[torch.device, Tensor] = {}
        for device, indices in places.items():
            pairs = [(_real(first[index]), _real(second[index])) for index in indices]
            found[device] = (on_cpu if device.type == "cpu" else fused)([x for x, _ in pairs], [y for _, y in pairs])
        if len(found) == 1:
            return next(iter(found.values()))
        # to an accelerator: a copy to the host would wait
        home = next((device for device in found if device.type != "cpu"), next(iter(found)))
        rows = {
            index: row.to(home)
            for device, indices in places.items()
            for index, row in zip(indices, found[device].unbind(), strict=True)
        }
        return torch.stack([rows[index] for index in range(len(first))])


def _real(tensor: Tensor) -> Tensor:
    """Return the real numbers of a tensor, as a vector."""
    found = tensor.detach()
    if found.layout is not torch.strided:
        found = found.to_dense()
    return (torch.view_as_real(found.resolve_conj()) if found.is_complex() else found).reshape(-1)


def _blocks(first: Sequence[Tensor], second: Sequence[Tensor]) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield blocks of both tensors, the first in float64, with the place of their tensor in the list."""
    for index, (x, y) in enumerate(zip(first, second, strict=True)):
        for a, b in ((x, y),) if x.numel() <= BLOCK else zip(torch.split(x, BLOCK), torch.split(y, BLOCK), strict=True):
            yield index, a.double(), b


def _rows(count: int, owners: Sequence[int], sums: Sequence[Tensor]) -> Tensor:
    """Add up the sums of blocks, in a row for each tensor."""
    rows = torch.stack(list(sums)).view(len(owners), -1)
    if len(owners) == count:
        return rows
    return rows.new_zeros(count, rows.shape[1]).index_add_(0, torch.tensor(owners), rows)


def _update_sums_cpu(before: Sequence[Tensor], after: Sequence[Tensor]) -> Tensor:
    owners: list[int] = []
    sums: list[Tensor] = []
    for owner, w, v in _blocks(before, after):
        s = v.to(torch.float64, copy=True).sub_(w)
        owners.append(owner)
        sums += [torch.dot(w, w), torch.dot(s, s), torch.dot(w, s)]
    return _rows(len(before), owners, sums)


def _gradient_sums_cpu(weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    owners: list[int] = []
    sums: list[Tensor] = []
    for owner, w, gradient in _blocks(weights, gradients):
        g = gradient.double()
        owners.append(owner)
        sums += [torch.dot(g, g), torch.dot(w, g)]
    return _rows(len(weights), owners, sums)


def _update_sums_fused(before: Sequence[Tensor], after: Sequence[Tensor]) -> Tensor:
    found = []
    for group in _groups(before):
        w, v = _wide(before[group]), _wide(after[group])
        s = torch._foreach_sub(v, w)  # pyright: ignore[reportPrivateImportUsage]
        ww, ss, vv = (_norms(part, 2).square() for part in (w, s, v))
        found.append(torch.stack([ww, ss, (vv - ww - ss) / 2], dim=1))
    return torch.cat(found)


def _gradient_sums_fused(weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    found = []
    for group in _groups(weights):
        w, g = _wide(weights[group]), _wide(gradients[group])
        products = torch._foreach_mul(w, g)  # pyright: ignore[reportPrivateImportUsage]
        # there is no fused sum, but a fused sum of absolute values: sum p = 2 sum max(p, 0) - sum |p|
        absolute = _norms(products, 1)
        torch._foreach_clamp_min_(products, 0.0)  # pyright: ignore[reportPrivateImportUsage]
        found.append(torch.stack([_norms(g, 2).square(), 2 * _norms(products, 1) - absolute], dim=1))
    return torch.cat(found)


def _groups(tensors: Sequence[Tensor]) -> Iterator[slice]:
    """Cut the tensors, in order, into groups that are measured together."""
    start, held = 0, 0
    for index, tensor in enumerate(tensors):
        if index > start and held + tensor.numel() > GROUP:
            yield slice(start, index)
            start, held = index, 0
        held += tensor.numel()
    yield slice(start, len(tensors))


def _wide(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors in float32 at least: differences and products of half precision would be too coarse."""
    return [x if x.dtype in (torch.float32, torch.float64) else x.float() for x in tensors]


def _norms(tensors: Sequence[Tensor], order: int) -> Tensor:
    wide = torch.float32 if tensors[0].device.type == "mps" else torch.float64
    norms: Sequence[Tensor] = torch._foreach_norm(list(tensors), order, dtype=wide)  # pyright: ignore[reportPrivateImportUsage]
    return torch.stack(list(norms))
