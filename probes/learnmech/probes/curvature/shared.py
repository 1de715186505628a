"""The mean loss over the data of several processes, each of which holds all parameters and its own data."""

import platform
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from learnmech.probes.curvature.batches import objective_of
from learnmech.probes.curvature.objective import Objective, Unmeasurable
from learnmech.probes.curvature.space import Space
from learnmech.probes.distributed.isolation import SharedLoss
from learnmech.probes.distributed.peers import Peers, Step
from learnmech.probes.isolation.counting import examples


class ReplicatedSpace(Space):
    """Vectors of which every process holds the same numbers, up to rounding.

    Where processes run on unlike devices their sums differ in the last bit, and decisions would differ with them: then
    sums are those of the first process, everywhere, at one message each. Random vectors always are: those of the same
    seed may differ altogether (on a GPU they depend on the number of its multiprocessors).

    Args:
        space: The space as one process sees it.
        peers: The processes.
    """

    def __init__(self, space: Space, peers: Peers) -> None:
        super().__init__(space.size, space.dtype, space.device, dimension=space.dimension)
        self._peers = peers
        self._alike = peers.agree(_arithmetic(space.device))

    def reduced(self, partial: Tensor) -> Tensor:
        """Return numbers that are the same in every process."""
        return partial if self._alike else self._peers.first(partial)

    def draw(self, generator: torch.Generator) -> Tensor:
        """Draw a vector of independent standard normal numbers, the same in every process [size]."""
        return self._peers.shown(self._peers.attempt(lambda: super(ReplicatedSpace, self).draw(generator), Step.DRAW))


def _arithmetic(device: torch.device) -> str:
    """Name what the last bit of a sum depends on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return (
        f"{torch.__version__} {device.type} {name} {torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()}"
    )


class SharedObjective(Objective):
    """L(w) = sum_ri n_ri L_ri(w) / sum_ri n_ri over the batches i of all processes r, each of which holds all of w.

    Values and first derivatives are computed in each process on its own examples and averaged over processes; one that
    has no examples takes part without evaluating anything. What needs a graph is made of `mine`, process by process.
    All processes call the same methods in the same order, inside `Peers.together`.

    Args:
        loss: The isolated loss.
        batches: This process's batches; there may be none, and those without examples are left out.
        weights: Number of examples n_ri of each batch. None: the first dimension of the first tensor in the batch.
        parameters: Where to take it, a leaf for each of the loss's; None: at the loss's own.
        draw: State of the random streams for this process's first batch.

    Attributes:
        mine: The mean loss over this process's own examples; None if it has none.
        peers: The processes.
        share: This process's share of the examples.

    Raises:
        ValueError: Examples cannot be counted, or there are none in any process.
        PeerFailed: The models of the processes differ in size.
    """

    def __init__(
        self,
        loss: SharedLoss,
        batches: Sequence[Any],
        *,
        weights: Sequence[float] | None = None,
        parameters: Sequence[Tensor] | None = None,
        draw: int = 0,
    ) -> None:
        leaves = list(loss.leaves.values()) if parameters is None else list(parameters)
        super().__init__(leaves, [nothing], names=list(loss.leaves))
        self.peers = loss.peers

        def local() -> tuple[Objective | None, float]:
            counts = [float(examples(batch)) for batch in batches] if weights is None else [float(w) for w in weights]
            if len(counts) != len(batches):
                raise ValueError(f"{len(counts)} weights came for {len(batches)} batches; expected one for each")
            filled = [(batch, count) for batch, count in zip(batches, counts, strict=True) if count != 0]
            if not filled:
                return None, 0.0
            own = [count for _, count in filled]
            chosen = [batch for batch, _ in filled]
            return objective_of(loss, chosen, weights=own, parameters=leaves, draw=draw), sum(own)

        self.mine, count = self.peers.attempt(local)
        self.peers.same(float(self.space.size), "the number of trained parameters")
        total = float(self.peers.numbers(torch.tensor([count], dtype=torch.float64)))
        if not total > 0:
            raise ValueError("no process has a batch with examples in it")
        self.share = count / total
        self.space = ReplicatedSpace(self.space, self.peers)

    def gradient_along(self, direction: Tensor | None = None, distance: float = 0.0) -> Tensor:
        """Return the gradient of L at w + distance * direction, the same in every process [size]."""

        def own() -> Tensor:
            mine = self.mine
            return self.space.zeros() if mine is None else mine.gradient_along(direction, distance) * self.share

        return self.peers.total(self.peers.attempt(own, Step.ADD))

    def loss_along(self, direction: Tensor | None = None, distance: float = 0.0) -> Tensor:
        """Return L at w + distance * direction, the same in every process, a scalar tensor in float64."""
        value = self._mean(lambda mine: float(mine.loss_along(direction, distance)))
        return torch.tensor(value, dtype=torch.float64, device=self.space.device)

    def slope(self, direction: Tensor, distance: float) -> float:
        """Return the derivative of L along a direction at w + distance * direction; it may be NaN."""
        return self._mean(lambda mine: mine.slope(direction, distance))

    def _mean(self, number: Callable[[Objective], float]) -> float:
        def own() -> float:
            return 0.0 if self.mine is None else self.share * number(self.mine)

        return float(self.peers.counted(own, Step.READ, lambda found: [found])[1])


def nothing(_: Sequence[Tensor]) -> Tensor:
    """Be the loss of no examples.

    Raises:
        Unmeasurable: Always.
    """
    raise Unmeasurable("this process has no examples")
