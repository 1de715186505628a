"""How far a gradient is from what a symmetry forces on it."""

import enum
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from learnmech.probes.symmetry.group import Group, Kind
from learnmech.probes.symmetry.sums import Reader, Sums


class Precision(enum.StrEnum):
    """The arithmetic in which a gradient was computed."""

    DOUBLE = "double"
    SINGLE = "single"
    COARSE = "coarse"
    """Half precision or TF32 is in the training step."""


_BALANCE = {Precision.DOUBLE: 1e-12, Precision.SINGLE: 1e-5, Precision.COARSE: 3e-2}
"""Largest residual of two sides that balance. On transformers of two blocks they did to 5e-16, 3e-7 and (bfloat16
autocast) 4e-3; pairs without the symmetry were out of balance by 0.1 and more."""

_SHIFT = {Precision.DOUBLE: 1e-12, Precision.SINGLE: 1e-5, Precision.COARSE: 4e-3}
"""The same of shifts: 1e-16, 5e-8 and 4e-4 where the symmetry is, 2e-2 and more where it is not."""

_NORM = {Precision.DOUBLE: 1e-4, Precision.SINGLE: 1e-4, Precision.COARSE: 1e-3}
"""The same where a normalization makes the symmetry: its epsilon, added to a variance, breaks it a little in any
arithmetic, by up to 3e-5 at 1e-5. In bfloat16 autocast: 5e-4. Tensors without the symmetry show 1e-3 to 1e-1, at one
measurement in a hundred less: therefore several looks."""

CHANCE = 0.1
"""The same as a share of 1 / sqrt(n), the cosine that chance gives two vectors of n numbers: it is below this once in
13 looks, five times in a row once in 3e5. A bfloat16 layer of 2.4 million weights that has the symmetry showed 1e-6 to
1e-5, where this is 6e-5 (rounding is as incoherent as chance), one without it 5e-5 to 2e-3."""

VANISHING = {Precision.DOUBLE: 1e-13, Precision.SINGLE: 1e-6, Precision.COARSE: 3e-4}
"""Two sides below this share of |w||g| are rounding, and their balance says nothing."""


def floor(group: Group, precision: Precision, elements: int = 1) -> float:
    """Return the largest residual of a group that has its symmetry; `elements`: numbers in a unit of it."""
    if group.kind in (Kind.SCALE, Kind.RESIDUAL_STREAM):
        return min(_NORM[precision], CHANCE / math.sqrt(max(elements, 1)))
    return (_SHIFT if group.linear else _BALANCE)[precision]


def residual_sums(group: Group, reader: Reader, sums: Sequence[Sums], *, whole: bool) -> Tensor:
    """Return what `read_residual` takes, three numbers, on the device.

    Args:
        group: The group.
        reader: Where blocks are computed from.
        sums: Sums of its parts, in order.
        whole: Whether to compare whole blocks, a product of matrices each; False: their diagonals, from the sums.
    """
    product = torch.stack([(s.ww * s.gg).sqrt() for s in sums]).sum(0).norm()
    if group.linear:
        # the share of g along shifts: |sum_k g_k| / (sqrt(K) |g|), K outputs
        along = [s.gg if s.g is None else s.g for s in sums]
        size = torch.stack([s.gg.sum() * s.elements for s in sums]).sum().sqrt()
        return torch.stack([torch.cat(along).norm(), size, size])
    if not group.two_sided:
        return torch.stack([torch.stack([s.wg for s in sums]).sum(0).norm(), product, product])
    plus, minus = _blocks(group, reader) if whole and group.block > 1 else _diagonals(group, sums)
    return torch.stack([(plus - minus).norm(), plus.norm() + minus.norm(), product])


def read_residual(values: Sequence[float], precision: Precision) -> float:
    """Turn the sums into the relative residual.

    Two sides: |L - R| / (|L| + |R|) with L, R the inner products <w, g> of the sides, unit by unit (in a block the
    matrices G W' and W G', which also forces those between different units), as vectors over units. Otherwise
    |<w, g>| / (|w||g|).

    Args:
        values: The three elements of `residual_sums`.
        precision: The arithmetic of the gradient.

    Returns:
        The residual; NaN where there is no gradient, or where both sides are only rounding.
    """
    broken, sides, product = values
    if not (math.isfinite(broken) and sides > VANISHING[precision] * product):
        return math.nan
    return broken / sides


def precision_of(tensors: Sequence[Tensor], *, precise: bool) -> Precision:
    """Return the arithmetic of gradients of tensors.

    Args:
        tensors: Parameters and gradients.
        precise: False where half precision or TF32 is in the training step.
    """
    kinds = {tensor.dtype for tensor in tensors}
    if not precise or kinds - {torch.float32, torch.float64}:
        return Precision.COARSE
    return Precision.SINGLE if torch.float32 in kinds else Precision.DOUBLE


def _diagonals(group: Group, sums: Sequence[Sums]) -> tuple[Tensor, Tensor]:
    sides: dict[int, Tensor] = {}
    for part, s in zip(group.parts, sums, strict=True):
        sides[part.sign] = sides[part.sign] + s.wg if part.sign in sides else s.wg
    return sides[1], sides[-1]


def _blocks(group: Group, reader: Reader) -> tuple[Tensor, Tensor]:
    """Return sum of G W' over one side's parts and of W G' over the other's, each as [blocks, block, block]."""
    sides: dict[int, Tensor] = {}
    for part in group.parts:
        w, g = (t.reshape(-1, group.block, t.shape[1]) for t in reader.wide(part))
        own = g @ w.mT if part.sign > 0 else w @ g.mT
        sides[part.sign] = sides[part.sign] + own if part.sign in sides else own
    return sides[1], sides[-1]
