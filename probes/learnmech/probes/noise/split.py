"""Gradient noise from a batch that is cut into pieces: extra backward passes, which always work."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from learnmech.probes.context import batch_coupling
from learnmech.probes.estimators.noise import NoiseParts, noise_between, noise_from_pieces
from learnmech.probes.isolation import PureLoss, Refusal, Skip
from learnmech.probes.isolation.batch import clone, tensors
from learnmech.probes.noise.additive import not_additive
from learnmech.probes.pieces import REMEDY, count, split
from learnmech.probes.probe import TrainingView

PIECES = 4
"""Pieces of a batch: the estimate of tr Sigma from K pieces has K - 1 degrees of freedom; four cost one gradient of the
whole batch, like any other number, and two tensors of the model's size more than two."""

PATIENCE = 3
"""Batches in a row too small to be cut after which there will be none to cut."""

Split = Callable[[Any, int], list[Any]]


class SplitBatches:
    """Cuts the current batch into pieces, and holds it to compare it with the next one.

    Args:
        split: `split(batch, pieces)` returns a list of smaller batches; None: along the first dimension of all tensors.
    """

    def __init__(self, split: Split | None) -> None:
        self._split = split
        self._held: Any = None
        self._too_small = 0

    def __getstate__(self) -> dict[str, Any]:
        """Leave held batches out of copies and pickles."""
        return self.__dict__ | {"_held": None}

    def measure(
        self, view: TrainingView, weights: Mapping[str, Tensor], members: Mapping[str, Sequence[str]]
    ) -> tuple[dict[str, NoiseParts], float | None, int]:
        """Measure on the batch of a view.

        Args:
            view: The training.
            weights: Weights to measure at, by name: those from before the update, where the batch has been used since.
            members: Scope -> names of parameters.

        Returns:
            The estimates of each scope; tr Sigma of the whole once more, from this batch and the one before, if there
            is one; the number of pieces.

        Raises:
            Refusal: Batches cannot be cut into pieces.
            Skip: This batch is too small.
        """  # noqa: DOC502 (raised by _pieces)
        held = None if view.full_batch or _same(self._held, view.batch) else self._held
        self._held = None if view.full_batch else clone(view.batch)
        pieces = self._pieces(view)
        sizes = [count(piece) or 0 for piece in pieces]
        if min(sizes) < 1:
            raise Refusal("split(batch, pieces) returned a piece whose examples cannot be counted.")
        total = sum(sizes)

        def work(loss: PureLoss) -> tuple[list[list[Tensor]], list[Tensor] | None, list[str]]:
            first = 1 + view.step * (PIECES + 2)  # other random numbers at each step and in each piece
            found = [_gradient(loss, weights, piece, first + index) for index, piece in enumerate(pieces)]
            other = None if held is None else _gradient(loss, weights, held, first + PIECES)
            return found, other, list(loss.leaves)

        gradients, other, names = view.isolate(work)
        between = None
        if other is not None:
            mean = [
                torch.stack([g * (size / total) for g, size in zip(column, sizes, strict=True)]).sum(dim=0)
                for column in zip(*gradients, strict=True)
            ]
            between = noise_between(mean, other, (total, count(held) or total))
        population = view.dataset_size if view.dataset_size and view.dataset_size >= total else None
        groups = [[names.index(name) for name in scope if name in names] for scope in members.values()]
        parts = noise_from_pieces(gradients, sizes, population=population, groups=groups)
        return dict(zip(members, parts, strict=True)), between, len(pieces)

    def not_additive(self, view: TrainingView) -> str:
        """Say why the loss of the batch of a view is not the mean of those of its examples; '' if it is."""
        pieces = self._pieces(view)
        return not_additive(view, pieces, [count(piece) or 0 for piece in pieces])

    def _pieces(self, view: TrainingView) -> list[Any]:
        batch = view.batch
        total = count(batch)
        smallest = 2 if batch_coupling(view.model) else 1  # batch statistics of one example do not exist
        if total is not None and total < 2 * smallest:
            self._too_small += 1
            if self._too_small < PATIENCE:
                raise Skip(f"a batch of {total} examples is too small to cut")
            raise Refusal(f"A batch of {total} examples cannot be cut into two pieces.", "Use larger batches.")
        self._too_small = 0
        wanted = PIECES if total is None or total >= PIECES * smallest else 2
        pieces = split(batch, wanted) if self._split is None else list(self._split(batch, wanted))
        if len(pieces) < 2:
            raise Refusal(f"split(batch, {wanted}) returned {len(pieces)} pieces, expected {wanted}.", REMEDY)
        return pieces


def _gradient(loss: PureLoss, weights: Mapping[str, Tensor], batch: Any, draw: int) -> list[Tensor]:
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
    compared = [torch.equal(a, b) for a, b in pairs if a.dim() > 0 or b.dim() > 0]
    return bool(compared) and all(compared)
