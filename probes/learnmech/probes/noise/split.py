"""Gradient noise from a batch that is cut into pieces: extra backward passes, which always work."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from learnmech.probes.estimators.noise import NoiseParts, noise_between, noise_from_pieces
from learnmech.probes.isolation import PureLoss, Refusal
from learnmech.probes.isolation.batch import clone, tensors
from learnmech.probes.isolation.counting import count
from learnmech.probes.noise.additive import Additive, Tensors, compared, mixed
from learnmech.probes.noise.small import SmallBatches
from learnmech.probes.noise.units import PieceUnits, Units
from learnmech.probes.pieces import REMEDY, split
from learnmech.probes.probe import TrainingView

PIECES = 4
"""Pieces of a batch: the estimate of tr Sigma from K pieces has K - 1 degrees of freedom; four cost one gradient of the
whole batch, like any other number, and two tensors of the model's size more than two."""

Split = Callable[[Any, int], list[Any]]


@dataclass(frozen=True, slots=True)
class Cut:
    """What one batch that was cut says.

    Attributes:
        parts: The estimates of each scope.
        between: tr Sigma of the whole once more, from this batch and the one before, if there is one.
        pieces: Number of pieces.
        additive: Whether examples have gradients of their own, where that was asked for.
    """

    parts: dict[str, NoiseParts]
    between: float | None
    pieces: int
    additive: Additive | None = None


@dataclass(frozen=True, slots=True)
class _Held:
    """A batch in the pieces that it was cut into, so that a loss that is no mean is evaluated on as many as before.

    Attributes:
        pieces: The pieces.
        sizes: Examples in each.
        units: Units in each.
    """

    pieces: list[Any]
    sizes: list[int]
    units: list[float]

    def mean(self, gradient: Callable[[Any, int], Tensors]) -> Tensors:
        """Return the mean of the gradients of the pieces, weighed by their units: they are not kept all at once."""
        total: Tensors = []
        for index, (piece, units) in enumerate(zip(self.pieces, self.units, strict=True)):
            found = gradient(piece, index)
            total = total or [torch.zeros_like(g, dtype=torch.promote_types(g.dtype, torch.float32)) for g in found]
            for mean, g in zip(total, found, strict=True):
                mean.add_(g, alpha=units / sum(self.units))
        return total


class SplitBatches:
    """Cuts the current batch into pieces, and holds it to compare it with the next one.

    Args:
        split: `split(batch, pieces)` returns a list of smaller batches; None: along the first dimension of all tensors.
        units: Tells how many units the loss of a batch, or of a piece, is a mean over; None: its examples.
    """

    def __init__(self, split: Split | None, units: Units | None = None) -> None:
        self._split = split
        self._units = PieceUnits(units)
        self._held: _Held | None = None
        self._small = SmallBatches()

    def __getstate__(self) -> dict[str, Any]:
        """Leave held batches out of copies and pickles."""
        return self.__dict__ | {"_held": None}

    def measure(
        self,
        view: TrainingView,
        weights: Mapping[str, Tensor],
        members: Mapping[str, Sequence[str]],
        *,
        compare: bool = False,
    ) -> Cut:
        """Measure on the batch of a view.

        Args:
            view: The training.
            weights: Weights to measure at, by name: those from before the update, where the batch has been used since.
            members: Scope -> names of parameters.
            compare: Whether to find out if the gradient of a batch is the mean of those of its examples; it costs one
                gradient of the batch more, and two with dropout.

        Raises:
            Refusal: Batches cannot be cut into pieces.
            Skip: This batch is too small, or its units cannot be counted.
        """  # noqa: DOC502 (raised by _pieces)
        pieces = self._pieces(view)
        sizes = [count(piece) or 0 for piece in pieces]
        if min(sizes) < 1:
            raise Refusal("split(batch, pieces) returned a piece whose examples cannot be counted.")
        units = self._units.of(pieces, sizes)
        total, shares = sum(sizes), [number / sum(units) for number in units]
        held = None if self._held is None or view.full_batch or _same(self._held.pieces, pieces) else self._held
        self._held = None if view.full_batch else _Held(clone(pieces), sizes, units)

        def work(loss: PureLoss) -> tuple[list[Tensors], Tensors | None, Additive | None, list[str]]:
            first = 1 + view.step * 2 * PIECES  # other random numbers at each step and in each piece

            def gradient(batch: Any, number: int) -> Tensors:
                return _gradient(loss, weights, batch, first + number)

            found = [gradient(piece, index) for index, piece in enumerate(pieces)]
            other = None if held is None else held.mean(lambda piece, index: gradient(piece, len(pieces) + index))
            additive = compared(gradient, view.batch, pieces, found, shares, precise=view.precise) if compare else None
            return found, other, additive, list(loss.leaves)

        gradients, other, additive, names = view.isolate(work)
        between = None
        if held is not None and other is not None:
            mean = [mixed(column, shares) for column in zip(*gradients, strict=True)]
            between = noise_between(mean, other, (total, sum(held.sizes)), (sum(units), sum(held.units)))
        population = view.dataset_size if view.dataset_size and view.dataset_size >= total else None
        column = {name: index for index, name in enumerate(names)}
        groups = [[column[name] for name in scope if name in column] for scope in members.values()]
        parts = noise_from_pieces(gradients, sizes, units=units, population=population, groups=groups)
        return Cut(dict(zip(members, parts, strict=True)), between, len(pieces), additive)

    def _pieces(self, view: TrainingView) -> list[Any]:
        batch = view.batch
        total = count(batch)
        smallest = self._small.look(view.model, total, 2, "cut", "two")
        wanted = PIECES if total is None or total >= PIECES * smallest else 2
        pieces = split(batch, wanted) if self._split is None else list(self._split(batch, wanted))
        if len(pieces) < 2:
            raise Refusal(f"split(batch, {wanted}) returned {len(pieces)} pieces, expected {wanted}.", REMEDY)
        return pieces


def _gradient(loss: PureLoss, weights: Mapping[str, Tensor], batch: Any, draw: int) -> Tensors:
    leaves = [weights.get(name, leaf).detach().requires_grad_() for name, leaf in loss.leaves.items()]
    own = list(loss.leaves.values())
    at = leaves if weights else own

    def work() -> list[Tensor | None]:
        return list(torch.autograd.grad(loss(batch, draw=draw), at, allow_unused=True))

    found = loss.at(at, work) if weights else work()
    dense = [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(at, found, strict=True)]
    return [g if g.layout is torch.strided else g.to_dense() for g in dense]


def _same(held: Any, batch: Any) -> bool:
    """Tell whether two batches hold the same numbers: the whole data set, collated anew."""
    pairs = zip(tensors(held), tensors(batch), strict=False)
    found = [(a, b) for a, b in pairs if a.dim() > 0 or b.dim() > 0]
    # torch compares no sparse numbers, and none on different devices: taken for another batch
    comparable = all(a.layout is b.layout is torch.strided and a.device == b.device for a, b in found)
    return bool(found) and comparable and all(torch.equal(a, b) for a, b in found)
