"""What one update does to a charge, exactly: SGD with momentum, dampening, Nesterov's form and L2 weight decay."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learnmech.probes.symmetry.group import Group
from learnmech.probes.symmetry.sums import Sums


@dataclass(frozen=True, slots=True)
class LinearUpdate:
    """An update that is linear in what is known before it: w' = a w + b g + c v.

    Attributes:
        a: Coefficient of the weights w.
        b: Coefficient of the gradient g, without weight decay.
        c: Coefficient of the momentum buffer v as it was before the update; 0 without one.
    """

    a: float
    b: float
    c: float = 0.0


def sgd_update(
    lr: float,
    *,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    first: bool = False,
    maximize: bool = False,
) -> LinearUpdate:
    """Return the update of `torch.optim.SGD`.

        h = g + weight_decay w,    v' = momentum v + (1 - dampening) h    (first update: v' = h, undampened),
        w' = w - lr v',            Nesterov: w' = w - lr (h + momentum v').

    >>> sgd_update(0.1, weight_decay=0.5)
    LinearUpdate(a=0.95, b=-0.1, c=-0.0)

    Args:
        lr: Learning rate.
        momentum: Momentum.
        dampening: Dampening.
        nesterov: Whether momentum is Nesterov's.
        weight_decay: Coefficient of the L2 term in the gradient.
        first: Whether there is no momentum buffer yet.
        maximize: Whether the optimizer climbs.
    """
    fresh = 1.0 if first or not momentum else 1.0 - dampening
    kept = 0.0 if first else momentum
    along, before = fresh, kept  # v' = along h + before v
    if nesterov and momentum:
        along, before = 1.0 + momentum * fresh, momentum * kept
    sign = -1.0 if maximize else 1.0
    return LinearUpdate(1.0 - lr * along * weight_decay, -sign * lr * along, -lr * before)


def predicted_drift(
    group: Group, sums: Sequence[Sums], updates: Sequence[LinearUpdate], factor: Tensor | float = 1.0
) -> Tensor:
    """Return by how much an update changes the charge of each unit, if the symmetry holds.

    The charge after the update is the sum over parts of sign |a w + b g + c v|^2: six inner products. The symmetry
    takes one of them out, the sum of sign <w, g>, and with it the only change of first order. What remains is, for
    plain SGD without and with weight decay L,

        Q' - Q = lr^2 sum of sign |g|^2,     Q' = (1 - lr L)^2 Q + lr^2 sum of sign |g|^2.

    Where parts differ in learning rate or weight decay the rest of their <w, g> is put back in.

    Args:
        group: The group.
        sums: Sums of its parts before the update, in order.
        updates: The update of each part.
        factor: What the gradient was multiplied by between the sums and the update (clipping, loss scale).

    Returns:
        Float64. [units]

    References:
        Kunin et al. 2021, arXiv 2012.04728, section 6; Du et al. 2018, arXiv 1806.00900.
    """
    taken_out = updates[0].a * updates[0].b
    own = [
        part.sign * (_linear(s, u) if group.linear else _quadratic(s, u, taken_out, factor))
        for part, s, u in zip(group.parts, sums, updates, strict=True)
    ]
    return torch.stack(own).sum(0)


def broken_drift(
    group: Group, sums: Sequence[Sums], updates: Sequence[LinearUpdate], factor: Tensor | float = 1.0
) -> Tensor:
    """Return what a symmetry that does not quite hold adds to `predicted_drift`: the term that it takes out."""
    signed = [part.sign * (s.wg if s.g is None else s.g) for part, s in zip(group.parts, sums, strict=True)]
    first = updates[0]
    slope = first.b if group.linear else 2.0 * first.a * first.b
    return slope * factor * torch.stack(signed).sum(0)


def _quadratic(s: Sums, u: LinearUpdate, taken_out: float, factor: Tensor | float) -> Tensor:
    change = (u.a * u.a - 1.0) * s.ww + u.b * u.b * factor * factor * s.gg
    change = change + 2.0 * (u.a * u.b - taken_out) * factor * s.wg
    if u.c and s.wv is not None and s.gv is not None and s.vv is not None:
        change = change + u.c * u.c * s.vv + 2.0 * u.a * u.c * s.wv + 2.0 * u.b * u.c * factor * s.gv
    return change


def _linear(s: Sums, u: LinearUpdate) -> Tensor:
    change = (u.a - 1.0) * (s.ww if s.w is None else s.w)  # a linear charge has `w`
    return change + u.c * s.v if u.c and s.v is not None else change
