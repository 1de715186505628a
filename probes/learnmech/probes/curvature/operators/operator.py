"""What a curvature operator is: a symmetric matrix, seen only through its products with vectors."""

from typing import Protocol

from torch import Tensor

from learnmech.probes.curvature.objective import Unmeasurable
from learnmech.probes.curvature.space import Space


class NotTwiceDifferentiable(Unmeasurable):
    """The loss has no usable second derivative with respect to the parameters; the message says why."""


class Operator(Protocol):
    """A real symmetric matrix A: the Hessian of a loss, its Gauss-Newton part, or S A S of another one.

    Attributes:
        space: The space of the vectors.
        method: How products come about, as it is recorded: `double_backward`, `finite_differences`, `gauss_newton`.
        products: Products spent so far.
        error: Relative error |A v - product| / |A| by the operator's own account; 0 where products are exact.
        loss: The loss at w; NaN before the first evaluation.
        unused: Parameters that do not enter the loss.
        kinked: The loss is known to have kinks (ReLU, max pooling), at which differences of gradients and second
            derivatives have different opinions; known after the first product.
        resolution: Relative spacing of the coarsest parameter type: differences need steps well above it.
    """

    @property
    def space(self) -> Space: ...  # noqa: D102
    @property
    def method(self) -> str: ...  # noqa: D102
    @property
    def products(self) -> int: ...  # noqa: D102
    @property
    def error(self) -> float: ...  # noqa: D102
    @property
    def loss(self) -> float: ...  # noqa: D102
    @property
    def unused(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def kinked(self) -> bool: ...  # noqa: D102
    @property
    def resolution(self) -> float: ...  # noqa: D102

    def matvec(self, vector: Tensor) -> Tensor:
        """Return A v, a new flat vector [size]."""
        ...

    def gradient(self) -> Tensor:
        """Return the gradient of the loss in the operator's coordinates: S g, flat [size]."""
        ...

    def moved(self, vector: Tensor) -> Tensor:
        """Return S v, the direction in parameter space that a vector stands for [size]."""
        ...

    def slope(self, vector: Tensor, distance: float) -> float:
        """Return the derivative of the loss along S v at w + distance S v, from first derivatives only."""
        ...

    def magnitude(self, direction: Tensor | None = None) -> float:
        """Return |w|, or the size of the tensors that a direction in parameter space moves."""
        ...

    def release(self) -> None:
        """Free what was kept between products."""
        ...
