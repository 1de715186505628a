"""Sums over the units of parts of weights w, gradients g and momentum buffers v, in float64 on their device."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from learnmech.probes.symmetry.group import Group, Part, Steps

PIECE = 2**22
"""Numbers of a tensor that are converted to float64 at a time: 34 MB, and as many for the gradient and the momentum."""


@dataclass(frozen=True, slots=True)
class Sums:
    """What is summed over the elements of each unit of a part, in float64: tensors of [units].

    For a linear charge `w`, `g` and `v` are the sums themselves, else they are unused.
    """

    ww: Tensor
    wg: Tensor
    gg: Tensor
    wv: Tensor | None = None
    gv: Tensor | None = None
    vv: Tensor | None = None
    w: Tensor | None = None
    g: Tensor | None = None
    v: Tensor | None = None
    elements: int = 1


class Reader:
    """Sums up parts of one moment's tensors; what several groups share is summed once.

    Args:
        weights: Weights by name.
        gradients: Gradients by name.
        buffers: Momentum buffers by name, of those parameters that have one.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
    ) -> None:
        self._weights = weights
        self._gradients = gradients
        self._buffers = buffers
        self._known: dict[tuple[str, Steps, bool], Sums] = {}

    def sums(self, part: Part, *, linear: bool, momentum: bool) -> Sums:
        """Return the sums of a part, those with the momentum buffer only where they are asked for and there is one."""
        key = (part.parameter, part.steps, linear)  # whatever its sign
        known = self._known.get(key)
        name = part.parameter
        w, g = part.of(self._weights[name].detach()), part.of(self._gradients[name].detach())
        if known is None:
            ww, wg, gg = _dots([w, g], [(0, 0), (0, 1), (1, 1)])
            known = Sums(ww, wg, gg, elements=w.shape[1])
            if linear:
                known = replace(known, w=w.sum(1, dtype=torch.float64), g=g.sum(1, dtype=torch.float64))
        if momentum and known.vv is None and name in self._buffers:
            v = part.of(self._buffers[name].detach())
            wv, gv, vv = _dots([w, g, v], [(0, 2), (1, 2), (2, 2)])
            known = replace(known, wv=wv, gv=gv, vv=vv, v=v.sum(1, dtype=torch.float64) if linear else None)
        self._known[key] = known
        return known

    def wide(self, part: Part) -> tuple[Tensor, Tensor]:
        """Return a part of weight and gradient in float64. Both [units, elements], not to be written to."""
        w, g = self._weights[part.parameter].detach(), self._gradients[part.parameter].detach()
        return part.of(w).double(), part.of(g).double()


def charges(group: Group, weights: Mapping[str, Tensor]) -> Tensor:
    """Return the charge of each unit of a group, in float64."""
    parts = [part.of(weights[part.parameter].detach()) for part in group.parts]
    own = [w.sum(1, dtype=torch.float64) if group.linear else dot(w, w) for w in parts]
    return torch.stack([part.sign * charge for part, charge in zip(group.parts, own, strict=True)]).sum(0)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner products of two tensors of [units, elements], unit by unit, in float64."""
    (found,) = _dots([a, b], [(0, 1)])
    return found


def _dots(tensors: Sequence[Tensor], pairs: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Return inner products of pairs of tensors, in pieces: whole units where there are several, else a part of one."""
    along = 0 if tensors[0].shape[0] > 1 else 1
    count = math.ceil(tensors[0].numel() / PIECE) or 1
    rows: list[list[Tensor]] = []
    for piece in zip(*(tensor.chunk(count, along) for tensor in tensors), strict=True):
        wide = [tensor.double() for tensor in piece]
        rows.append([torch.linalg.vecdot(wide[i], wide[j]) for i, j in pairs])
    if len(rows) == 1:
        return rows[0]
    columns = zip(*rows, strict=True)
    return [torch.cat(column) if along == 0 else torch.stack(column).sum(0) for column in columns]
