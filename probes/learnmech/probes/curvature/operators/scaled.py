"""S A S: curvature in the coordinates of a preconditioned optimizer."""

from collections.abc import Sequence

from torch import Tensor

from learnmech.probes.curvature.objective import Objective
from learnmech.probes.curvature.operators.on_operator import OnOperator
from learnmech.probes.curvature.operators.operator import Operator


class Scaled(OnOperator):
    """The operator S A S with a diagonal S. With S = P^(-1/2) it has the spectrum of P^(-1) A.

    In the coordinates u with w = S u, gradients are S g and a unit vector v stands for the direction S v.

    Args:
        operator: A.
        scale: Diagonal of S, flat. [size]
    """

    def __init__(self, operator: Operator, scale: Tensor) -> None:
        super().__init__(operator)
        self._scale = scale

    def matvec(self, vector: Tensor) -> Tensor:
        """Return S A S v [size]."""
        return self._scale * self._operator.matvec(self._scale * vector)

    def gradient(self) -> Tensor:
        """Return S g [size]."""
        return self._scale * self._operator.gradient()

    def moved(self, vector: Tensor) -> Tensor:
        """Return S v in the coordinates of the parameters [size]."""
        return self._operator.moved(self._scale * vector)

    def slope(self, vector: Tensor, distance: float) -> float:
        """Return the derivative of the loss along S v at w + distance S v."""
        return self._operator.slope(self._scale * vector, distance)


def flat_scale(objective: Objective, scale: Sequence[Tensor]) -> Tensor:
    """Lay the diagonal of S flat.

    Args:
        objective: The objective whose parameters it scales.
        scale: One tensor per parameter, of its shape.

    Raises:
        ValueError: The shapes are not those of the parameters.
    """
    shapes = [tuple(s.shape) for s in scale]
    expected = [tuple(shape) for shape in objective.shapes]
    if shapes != expected:
        raise ValueError(f"the preconditioner has shapes {shapes}; expected those of the parameters, {expected}")
    return objective.join(list(scale))
