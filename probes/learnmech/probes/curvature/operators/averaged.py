"""The mean of the curvatures of several processes, each of which holds its own share of the data."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from learnmech.probes.curvature.objective import Unmeasurable
from learnmech.probes.curvature.operators.operator import Operator
from learnmech.probes.curvature.shared import SharedObjective
from learnmech.probes.distributed.peers import Step


class Averaged:
    """A = sum_r n_r A_r / sum_r n_r over processes r with n_r examples each: curvature of the loss over all the data.

    Each product is that of the process's own operator, then one message and one sum of vectors over processes. The
    message says whether the product went well everywhere; if it did not, every process raises the same error, and
    the vectors are not added up.

    All processes call the same methods in the same order, inside `Peers.together`.

    Args:
        operator: A_r, of the mean loss over this process's own examples. Where it has none, the operator is asked for
            nothing that needs a loss.
        objective: The mean loss over the examples of all processes.
        method: How products come about in the other processes, for one without examples.

    Attributes:
        products: Products spent so far.
        uncertainty: Error |A v - product| of a unit vector: the mean of what the operators state, weighted like them.
        error: The same relative to |A|, which is bounded from below by what was seen of it.
        loss: The loss over all the data; NaN before the first evaluation.
        unused: Parameters that enter the loss in no process.
    """

    def __init__(self, operator: Operator, objective: SharedObjective, method: str = "") -> None:
        self._operator = operator
        self._peers = objective.peers
        self._names = objective.names
        self._method = method
        self.space = objective.space
        self.weight = objective.share
        self.products = 0
        self.uncertainty = 0.0
        self.loss = math.nan
        self._norm = 0.0
        self.unused: tuple[str, ...] = ()
        self.kinked = False
        self._looked = False

    @property
    def error(self) -> float:
        """Relative error |A v - product| / |A|, at most."""
        if self.uncertainty == 0.0:
            return 0.0
        return self.uncertainty / self._norm if self._norm > 0 else math.inf

    @property
    def method(self) -> str:
        """How products come about."""
        return self._method or self._operator.method

    @property
    def resolution(self) -> float:
        """Relative spacing of the coarsest parameter type."""
        return self._operator.resolution

    def matvec(self, vector: Tensor) -> Tensor:
        """Return A v, a new flat vector, the same in every process [size].

        Raises:
            PeerFailed: The product failed in some process; errors that callers tell apart keep their class.
        """  # noqa: DOC502 (raised by `attempt`)
        product = self._added(lambda: self._operator.matvec(vector))
        self.products += 1
        self._look()
        if self.uncertainty > 0.0:
            self._norm = max(self._norm, float(self.space.norm(product) / self.space.norm(vector)))
        return product

    def gradient(self) -> Tensor:
        """Return the gradient of the loss over all the data in the operator's coordinates [size]."""
        return self._added(self._operator.gradient)

    def moved(self, vector: Tensor) -> Tensor:
        """Return S v, the direction in parameter space that a vector stands for [size]."""
        return self._operator.moved(vector)

    def slope(self, vector: Tensor, distance: float) -> float:
        """Return the derivative of the loss over all the data along S v at w + distance S v."""
        return self._mean(lambda: self._operator.slope(vector, distance))

    def magnitude(self, direction: Tensor | None = None) -> float:
        """Return |w|, or the size of the tensors that a direction in parameter space moves."""
        return float(self._peers.first(torch.tensor([self._operator.magnitude(direction)], dtype=torch.float64)))

    def release(self) -> None:
        """Free what was kept between products."""
        self._operator.release()

    def _added(self, work: Callable[[], Tensor]) -> Tensor:
        def local() -> Tensor:
            return work() * self.weight if self.weight else self.space.zeros()

        def states(_: Tensor) -> list[float]:
            operator = self._operator
            stated = operator.error and float(getattr(operator, "uncertainty", math.inf))
            return [self.weight * operator.loss, self.weight * stated] if self.weight else [0.0, 0.0]

        vector, sums = self._peers.counted(local, Step.ADD, states)
        self.loss, self.uncertainty = sums.tolist()
        return self._peers.total(vector)

    def _mean(self, work: Callable[[], float]) -> float:
        def local() -> float:
            return self.weight * work() if self.weight else 0.0

        return float(self._peers.counted(local, Step.READ, lambda number: [number])[1])

    def _look(self) -> None:
        """Agree, once, on the parameters that enter no process's loss."""
        if self._looked:
            return
        self._looked = True
        missing = set(self._operator.unused) if self.weight else set(self._names)
        used = [float(name not in missing) for name in self._names]
        kinked = float(self.weight > 0 and self._operator.kinked)
        *found, kinks = self._peers.total(self._peers.attempt(lambda: torch.tensor([*used, kinked]), Step.ADD)).tolist()
        self.kinked = kinks > 0
        self.unused = tuple(name for name, count in zip(self._names, found, strict=True) if count == 0)
        if len(self.unused) == len(self._names):
            raise Unmeasurable("no parameter has a gradient in any process")
