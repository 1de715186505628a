"""The mean loss over the data of all processes as a function of parameters that are sharded over them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from learnmech.probes.curvature.objective import NonFinite, Objective, Unmeasurable
from learnmech.probes.curvature.operators.operator import NotTwiceDifferentiable
from learnmech.probes.curvature.space import Space
from learnmech.probes.distributed.peers import Peers
from learnmech.probes.isolation.counting import examples
from learnmech.probes.isolation.sharded import ShardedLoss

FIRST_DERIVATIVES_ONLY = (
    "parameters are sharded by fully_shard, whose backward pass cannot be differentiated again: curvature comes from "
    'differences of gradients (method="double_backward" gathers the parameters whole in every process, if they fit)'
)


class ShardedObjective(Objective):
    """L(w) = sum_ri n_ri L_ri(w) / sum_ri n_ri over the batches i of all processes r, each of which holds shards of w.

    Vectors are this process's shards one after another; dot products and norms are those of the whole vectors. Only
    first derivatives can be had: those that training itself takes, at other weights. All processes call the
    same methods in the same order, inside `Peers.together`.

    **What cannot be made safe.** The passes gather parameters and scatter gradients by collectives of their own. A
    process that fails in the middle of one (not before, not after) leaves the others waiting, as it would in training.
    The processes vote before each pass and between forward and backward, so that a loss function that fails on its own
    batch after the model has run, and everything outside the passes, fails in all of them alike.

    Args:
        loss: The isolated loss.
        batches: This process's batches, at least one. Processes with fewer than others repeat their first one, with
            weight zero.
        peers: The processes.
        weights: Number of examples n_ri of each batch. None: the first dimension of the first tensor in the batch.
        shards: Where to take it, a shard for each of the loss's; None: at the loss's own.
        draw: State of the random streams for this process's first batch.

    Attributes:
        pure: The isolated loss.
        batches: The batches, as many in every process.
        peers: The processes.

    Raises:
        ValueError: A process has no batch, or its examples cannot be counted.
    """

    def __init__(
        self,
        loss: ShardedLoss,
        batches: Sequence[Any],
        peers: Peers,
        *,
        weights: Sequence[float] | None = None,
        shards: Sequence[Tensor] | None = None,
        draw: int = 0,
    ) -> None:
        counts = peers.attempt(lambda: _counts(batches, weights))
        rounds = int(max(peers.gathered(float(len(batches)))))
        total = float(peers.numbers(torch.tensor([math.fsum(counts)], dtype=torch.float64)))
        shares = [count / total for count in counts] + [0.0] * (rounds - len(batches))
        at = loss.shards.values() if shards is None else shards
        super().__init__(list(at), [_never] * rounds, names=list(loss.shards))
        self.weights = shares
        self.pure = loss
        self.peers = peers
        self._draw = draw
        self.batches = [*batches, *[batches[0]] * (rounds - len(batches))]
        self._pieces = dict(zip(self.names, self.sizes, strict=True))
        self.resolution = max(self.resolution, loss.resolution)
        copies = loss.copies
        self.space = Space(
            self.space.size,
            self.space.dtype,
            self.space.device,
            dimension=sum(parameter.numel() for parameter in loss.parameters.values()),
            reduce=lambda partial: peers.numbers(partial) / copies,
            salt=loss.part,
        )

    def inside(self, parameters: Sequence[Tensor], work: Callable[[], Tensor]) -> Tensor:  # noqa: ARG002 (as the base class)
        """Refuse: there is no graph to work on.

        Raises:
            NotTwiceDifferentiable: Always, unless the loss is not even finite.
        """
        if math.isnan(self.loss):
            self.gradient_along()
        raise NotTwiceDifferentiable(FIRST_DERIVATIVES_ONLY)

    def gradient_along(self, direction: Tensor | None = None, distance: float = 0.0) -> Tensor:
        """Return the shard of the gradient of L at w + distance * direction [size]."""
        return self._at(direction, distance, lambda: self._shard_of_gradient(first=direction is None))

    def loss_along(self, direction: Tensor | None = None, distance: float = 0.0) -> Tensor:
        """Return L at w + distance * direction, a scalar tensor in float64, from forward passes only."""

        def work() -> Tensor:
            with torch.no_grad():
                return self._mean([float(self._forward(index)) for index in range(len(self.batches))])

        return self._at(direction, distance, work)

    def slope(self, direction: Tensor, distance: float) -> float:
        """Return the derivative of L along a direction at w + distance * direction; it may be NaN."""
        gradient = self.gradient_along(direction, distance)
        return float(self.space.reduced((gradient.double() * direction.double()).sum()))

    def _at(self, direction: Tensor | None, distance: float, work: Callable[[], Tensor]) -> Tensor:
        if direction is None:
            return self.pure.at(self.parameters, work)
        return self.pure.at([shard.detach() for shard in self.moved(direction, distance)], work)

    def _forward(self, index: int) -> Tensor:
        return self.pure(self.batches[index], draw=self._draw + index)

    def _mean(self, losses: Sequence[float]) -> Tensor:
        own = math.fsum(weight * loss for weight, loss in zip(self.weights, losses, strict=True) if weight > 0)
        return self.peers.numbers(torch.tensor(own, dtype=torch.float64)).to(self.space.device)

    def _shard_of_gradient(self, *, first: bool) -> Tensor:
        losses: list[float] = []

        def passes() -> None:
            for index, weight in enumerate(self.weights):
                loss = self._forward(index)
                losses.append(float(loss.detach()))
                # the gradient is averaged over processes on its way, so this makes a sum of it
                torch.autograd.backward(self.differentiable(loss) * (weight * self.peers.size))

        _, gradients = self.pure.gradients(passes)
        if first and math.isnan(self.loss):
            self._saw(float(self._mean(losses)), gradients)
        return self.join(gradients)

    def _saw(self, value: float, gradients: Sequence[Tensor | None]) -> None:
        """Look once at what came: the loss and which parameters enter it, the same in every process."""
        if not math.isfinite(value):
            raise NonFinite(f"the loss over all processes is {value}")
        used = self.peers.numbers(torch.tensor([float(g is not None) for g in gradients], dtype=torch.float64)).tolist()
        self.unused = tuple(name for name, count in zip(self.names, used, strict=True) if count == 0)
        if len(self.unused) == len(self.names):
            raise Unmeasurable("no parameter has a gradient: the loss does not reach the parameters of the model")
        self.loss = value


def _never(_: Sequence[Tensor]) -> Tensor:
    raise NotTwiceDifferentiable(FIRST_DERIVATIVES_ONLY)


def _counts(batches: Sequence[Any], weights: Sequence[float] | None) -> list[float]:
    if not batches:
        raise ValueError("no batches came; with sharded parameters every process passes through the model, on a batch")
    counts = [float(examples(batch)) for batch in batches] if weights is None else [float(w) for w in weights]
    if len(counts) != len(batches) or not all(count > 0 and math.isfinite(count) for count in counts):
        raise ValueError(f"weights are {counts}; expected {len(batches)} positive numbers, one per batch")
    return counts
