"""What operators built straight on an objective have in common."""

import math

from torch import Tensor

from learnmech.probes import deadline
from learnmech.probes.curvature.objective import Objective
from learnmech.probes.curvature.space import Space


class OnObjective:
    """An operator on the parameters of an objective, in the coordinates u with w = S u.

    Args:
        objective: The loss as a function of its parameters.
        scale: Diagonal of S, flat; None: 1. [size]
    """

    kinked = False

    def __init__(self, objective: Objective, scale: Tensor | None = None) -> None:
        self.objective = objective
        self.products = 0
        self._scale = scale
        self._magnitude = math.nan

    @property
    def space(self) -> Space:
        """The space of the vectors."""
        return self.objective.space

    @property
    def loss(self) -> float:
        """The loss at w; NaN before the first product."""
        return self.objective.loss

    @property
    def unused(self) -> tuple[str, ...]:
        """Parameters that do not enter the loss."""
        return self.objective.unused

    @property
    def resolution(self) -> float:
        """Relative spacing of the coarsest parameter type."""
        return self.objective.resolution

    def moved(self, vector: Tensor) -> Tensor:
        """Return S v, the direction in the coordinates of the parameters [size]."""
        return vector if self._scale is None else self._scale * vector

    def slope(self, vector: Tensor, distance: float) -> float:
        """Return the derivative of the *loss* along S v at w + distance S v, from first derivatives only."""
        return self.objective.slope(self.moved(vector), distance)

    def magnitude(self, direction: Tensor | None = None) -> float:
        """Return |w|, or the size of the tensors that a direction in parameter space moves."""
        if direction is not None:
            return self.objective.magnitude(direction)
        if math.isnan(self._magnitude):
            self._magnitude = self.objective.magnitude()
        return self._magnitude

    def _may_begin(self, vector: Tensor) -> None:
        """Check before a product that there is time for it, and the shape of its vector."""
        deadline.check()
        if vector.shape != (self.space.size,):
            raise ValueError(
                f"vector has shape {tuple(vector.shape)}; expected ({self.space.size},), all parameters flat"
            )

    def _scaled(self, vector: Tensor) -> Tensor:
        """Return S v, written over v."""
        return vector if self._scale is None else vector.mul_(self._scale)
