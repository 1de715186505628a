"""The test by rescaling: the loss itself, evaluated at weights that the symmetry says are as good."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from learnmech.probes.isolation import PureLoss
from learnmech.probes.probe import TrainingView
from learnmech.probes.symmetry.certificates import contradict
from learnmech.probes.symmetry.group import Group, Kind, Part

FACTOR = 1.01
"""By how much weights are rescaled, once and once more."""

ROUNDING = {torch.float64: 1e-13, torch.float32: 1e-6}
"""Change of a loss, relative to it, that rounding alone may make: ten times what it made on a transformer of two blocks
(4e-16 and 1e-7)."""
COARSE = 1e-2
"""The same in half precision or TF32."""

NORM_EPSILON = 1e-3
"""Change of the loss, relative to that by moving the weights as far without the symmetry, that the epsilon of a
normalization may make."""


AT_ONCE = 1 << 20
"""Weights that are rescaled at a time, in float64 whatever their type, or c w and w / c would be off by the rounding of
c: 8 MB beside a tensor of any size."""


@dataclass(frozen=True, slots=True)
class Rescaled:
    """What rescaling did to a loss.

    Attributes:
        changes: L(rescaled) - L, rescaled once and twice.
        control: L(turned around) - L: the first part alone moved as far, in a direction that is not of the symmetry.
        repeated: L evaluated once more - L: zero if the loss is deterministic.
        rounding: What rounding alone may change.
    """

    changes: tuple[float, float]
    control: float
    repeated: float
    rounding: float

    @property
    def invariant(self) -> bool | None:
        """Whether the loss has the symmetry; None if it is not deterministic, or did not feel the control either."""
        allowed = max(self.rounding, NORM_EPSILON * abs(self.control))
        if abs(self.repeated) > self.rounding or not all(map(_finite, (*self.changes, self.control))):
            return None
        if max(map(abs, self.changes)) > allowed:
            return False
        return True if abs(self.control) > 2.0 * self.rounding else None


def rescaled(
    group: Group, weights: Mapping[str, Tensor], factor: float, into: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Return the weights that a group moves, moved: w -> c w, the other side w -> w / c; a shift adds (c - 1) |w|_rms.

    Args:
        group: The group.
        weights: Weights by name; they are not written to.
        factor: c.
        into: Tensors of the same shapes by name to put them into; None: new ones.
    """
    moved: dict[str, Tensor] = {}
    for part in group.parts:
        if part.parameter not in moved:
            moved[part.parameter] = _copied(part.parameter, weights, into)
        change = partial(_shift, factor=factor) if group.linear else partial(_scale, factor=factor**part.sign)
        _write(part, moved[part.parameter], change)
    return moved


def rescaling(
    loss: Callable[[Mapping[str, Tensor]], float],
    group: Group,
    weights: Mapping[str, Tensor],
    *,
    factor: float = FACTOR,
    precise: bool = True,
    into: Mapping[str, Tensor] | None = None,
) -> Rescaled:
    """Evaluate a loss at rescaled weights, and compare.

    Args:
        loss: The loss at the model's weights, some of them replaced by name.
        group: What to rescale.
        weights: The model's weights by name.
        factor: By how much.
        precise: False where half precision or TF32 is in the loss.
        into: Tensors to put rescaled weights into, one evaluation after the other; None: new ones each time.

    Returns:
        The changes of the loss. Five evaluations.
    """
    first = loss({})
    repeated = loss({}) - first
    changes = tuple(loss(rescaled(group, weights, c, into)) - first for c in (factor, factor * factor))
    part = group.parts[0]
    whole = _copied(part.parameter, weights, into)
    _write(part, whole, partial(_turn, factor=factor))
    rounding = (ROUNDING.get(whole.dtype, COARSE) if precise else COARSE) * abs(first)
    return Rescaled((changes[0], changes[1]), loss({part.parameter: whole}) - first, repeated, rounding)


class RescalingTests:
    """Tests certified groups on the loss itself, each once after it was certified.

    At one measurement one group, or all scale-invariant ones that wait, rescaled together: only if these fail is each
    of them tested by itself. What fails loses its certificate; it takes twice as many looks each time to get it again,
    and to be tested again.

    Attributes:
        found: What came out, by kind and label of the group.
    """

    def __init__(self) -> None:
        self.found: dict[tuple[Kind, str], Rescaled] = {}
        self._apart: set[tuple[Kind, str]] = set()

    def waits(self, group: Group) -> bool:
        """Tell whether a group was never tested, or has failed and was certified again since."""
        found = self.found.get((group.kind, group.label))
        return found is None or found.invariant is False

    def next(self, view: TrainingView, certified: Sequence[Group]) -> None:
        """Test groups that wait for it, if there are any; what fails loses its certificate.

        Args:
            view: The training, after an update on `view.batch`.
            certified: The groups that are certified.

        Raises:
            Refusal: The loss cannot be evaluated.
        """  # noqa: DOC502 (raised by `isolate`)
        waiting = [g for g in certified if self.waits(g) and g.names <= view.parameters.keys()]
        if not waiting:
            return
        chosen = [g for g in waiting if g.kind is Kind.SCALE and (g.kind, g.label) not in self._apart]
        if len(chosen) > 1:
            # a weight may be in two groups, alone and with its bias: it is scaled once
            parts = {part.parameter if part.whole else part: part for group in chosen for part in group.parts}
            found = self._test(view, Group(Kind.SCALE, "all of them", tuple(parts.values()), "all of them"))
            if found.invariant is not False:
                self.found |= {(group.kind, group.label): found for group in chosen}
            self._apart |= {(group.kind, group.label) for group in chosen}
            return
        group = waiting[0]
        found = self.found[group.kind, group.label] = self._test(view, group)
        if found.invariant is False:
            contradict(view.model, group)

    def _test(self, view: TrainingView, group: Group) -> Rescaled:
        precise = view.precise
        own = {name: view.parameters[name].detach() for name in group.names}

        def work(loss: PureLoss) -> Rescaled:
            # in the place of the leaves, which are copies: all that is certified may be most of the model. Not the
            # leaves themselves: autocast keeps what it made of a leaf.
            places = {name: loss.leaves[name].detach() for name in own}

            @torch.no_grad()
            def at(moved: Mapping[str, Tensor]) -> float:
                tensors = [moved.get(name, leaf) for name, leaf in loss.leaves.items()]
                value = loss.at(tensors, lambda: float(loss(view.batch)))
                for name in moved:
                    places[name].copy_(own[name])
                return value

            with torch.no_grad():
                return rescaling(at, group, own, precise=precise, into=places)

        return view.isolate(work, twice=False)


def _copied(name: str, weights: Mapping[str, Tensor], into: Mapping[str, Tensor] | None) -> Tensor:
    return weights[name].detach().clone() if into is None else into[name].copy_(weights[name].detach())


def _write(part: Part, whole: Tensor, change: Callable[[Tensor], None]) -> None:
    """Change a part of a tensor in place, wherever its elements lie."""
    piece = part.of(whole)
    if piece.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr():
        change(piece)
    elif part.whole:  # a copy in another order, which does not matter
        change(whole)
    else:
        change(piece)
        places = part.of(torch.arange(whole.numel(), device=whole.device).reshape(whole.shape))
        # `put_` has no deterministic form, which a training may have asked for
        flat = whole.reshape(-1).index_copy(0, places.reshape(-1), piece.reshape(-1))
        whole.copy_(flat.reshape(whole.shape))


def _scale(w: Tensor, factor: float) -> None:
    for piece in _pieces(w):
        piece.copy_(_wide(piece).mul_(factor))


def _shift(w: Tensor, factor: float) -> None:
    square = sum(float(_wide(piece).square().sum()) for piece in _pieces(w))
    for piece in _pieces(w):
        piece.copy_(_wide(piece).add_((factor - 1.0) * math.sqrt(square / w.numel())))


def _turn(w: Tensor, factor: float) -> None:
    """Move weights as far as scaling would, in the direction of the same in another order, signs alternating."""
    other = w.reshape(-1).flip(0)
    other[1::2].neg_()
    w.add_(other.reshape(w.shape), alpha=factor - 1.0)


def _pieces(w: Tensor) -> Sequence[Tensor]:
    """Cut a tensor along its longest dimension into views of `AT_ONCE` elements, or little more."""
    if not w.ndim:
        return (w,)
    longest = max(range(w.ndim), key=w.shape.__getitem__)
    return torch.split(w, max(1, AT_ONCE * w.shape[longest] // max(1, w.numel())), longest)


def _wide(w: Tensor) -> Tensor:
    return w.to(torch.complex128 if w.is_complex() else torch.float64, copy=True)


def _finite(value: float) -> bool:
    return value - value == 0.0
