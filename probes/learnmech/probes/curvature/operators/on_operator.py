"""What an operator made from another has from that one."""

from torch import Tensor

from learnmech.probes.curvature.operators.operator import Operator
from learnmech.probes.curvature.space import Space


class OnOperator:
    """Is like another operator in everything that a subclass does not define.

    Args:
        operator: The other operator.
    """

    def __init__(self, operator: Operator) -> None:
        self._operator = operator

    @property
    def space(self) -> Space:
        """The space of the vectors."""
        return self._operator.space

    @property
    def method(self) -> str:
        """How products come about."""
        return self._operator.method

    @property
    def products(self) -> int:
        """Products spent so far."""
        return self._operator.products

    @property
    def error(self) -> float:
        """Relative error of a product."""
        return self._operator.error

    @property
    def loss(self) -> float:
        """The loss at w."""
        return self._operator.loss

    @property
    def unused(self) -> tuple[str, ...]:
        """Parameters that do not enter the loss."""
        return self._operator.unused

    @property
    def resolution(self) -> float:
        """Relative spacing of the coarsest arithmetic in the loss."""
        return self._operator.resolution

    @property
    def kinked(self) -> bool:
        """The loss has kinks."""
        return self._operator.kinked

    def matvec(self, vector: Tensor) -> Tensor:
        """Return A v [size]."""
        return self._operator.matvec(vector)

    def gradient(self) -> Tensor:
        """Return the gradient in the operator's coordinates [size]."""
        return self._operator.gradient()

    def moved(self, vector: Tensor) -> Tensor:
        """Return the direction in parameter space that a vector stands for [size]."""
        return self._operator.moved(vector)

    def slope(self, vector: Tensor, distance: float) -> float:
        """Return the derivative of the loss along it at that distance."""
        return self._operator.slope(vector, distance)

    def magnitude(self, direction: Tensor | None = None) -> float:
        """Return |w|, or the size of the tensors that a direction in parameter space moves."""
        return self._operator.magnitude(direction)

    def release(self) -> None:
        """Free what was kept between products."""
        self._operator.release()
