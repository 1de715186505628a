"""The quadratic model of the loss along one direction: slope, curvature, and what they predict."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from learnmech.probes.curvature.operators import Operator
from learnmech.probes.curvature.operators.finite_differences import default_step


@dataclass(frozen=True, slots=True)
class QuadraticModel:
    """L(w + c v) - L(w) = c g'v + c^2 v'Hv / 2, up to the third order in c.

    Attributes:
        slope: g'v.
        curvature: v'Hv.
        square: v'v.
        slope_error: Rounding of g'v: eps |g| |v|, eps that of the vectors.
        curvature_error: Error of v'Hv: rounding, eps |v| |Hv|, where products are exact; by differences, how much two
            steps disagree.
    """

    slope: float
    curvature: float
    square: float
    slope_error: float
    curvature_error: float

    @property
    def finite(self) -> bool:
        """Tell whether all three numbers are."""
        return all(map(math.isfinite, (self.slope, self.curvature, self.square)))

    @property
    def change(self) -> float:
        """The predicted change of the loss at c = 1, g'v + v'Hv / 2."""
        return self.slope + self.curvature / 2

    @property
    def change_error(self) -> float:
        """Error of `change` from those of its parts."""
        return math.hypot(self.slope_error, self.curvature_error / 2)

    @property
    def sharpness(self) -> float:
        """The Rayleigh quotient v'Hv / v'v: between the smallest and the largest eigenvalue; NaN if v is zero."""
        return self.curvature / self.square if self.square else math.nan

    @property
    def sharpness_error(self) -> float:
        """Error of `sharpness`."""
        return self.curvature_error / self.square if self.square else math.nan

    @property
    def share(self) -> float:
        """The share v'Hv / (2 |g'v|): the part of the linear change that the curvature takes back; NaN without one."""
        return self.curvature / (2 * abs(self.slope)) if self.slope else math.nan

    @property
    def share_error(self) -> float:
        """Error of `share`."""
        if not self.slope:
            return math.nan
        return math.hypot(self.curvature_error, self.curvature * self.slope_error / self.slope) / (2 * abs(self.slope))


def quadratic_model(operator: Operator, vector: Tensor | None = None) -> QuadraticModel:
    """Measure slope and curvature of the loss along a vector.

    Costs one gradient and one product, on one graph. Where products are differences of gradients, five gradients: the
    curvature is then the difference of slopes (g(w + h v)'v - g(w - h v)'v) / 2h at two steps, which needs no vector
    Hv: on networks with kinks Hv by differences can be off by its own length, and v'Hv by a few per cent.

    Args:
        operator: The Hessian, at w; with a scaled operator everything is in its coordinates.
        vector: The direction v; None: the gradient itself. [size]

    Returns:
        The model; its numbers may be NaN where products are.

    Raises:
        NonFinite: The loss is NaN or infinite.
        Unmeasurable: There is no gradient, or no usable second derivative.
    """  # noqa: DOC502 (raised by the operator)
    space = operator.space
    gradient = operator.gradient()
    vector = gradient if vector is None else vector
    slope, square, steep = [*space.dots([gradient, vector], vector).tolist(), float(space.norm(gradient))]
    length, eps = math.sqrt(square), torch.finfo(space.dtype).eps
    if operator.method.startswith("finite_differences"):
        curvature, error = _by_slopes(operator, vector)
    else:
        product = operator.matvec(vector)
        curvature = float(space.dot(product, vector))
        error = max(operator.error, eps) * float(space.norm(product)) * length
    return QuadraticModel(
        slope=slope,
        curvature=curvature,
        square=square,
        slope_error=eps * steep * length,
        curvature_error=error,
    )


def _by_slopes(operator: Operator, vector: Tensor) -> tuple[float, float]:
    """Return v'Hv and its error from slopes to either side, at two steps."""
    length = float(operator.space.norm(operator.moved(vector)))
    if length == 0.0 or not math.isfinite(length):
        return length, 0.0
    h = default_step(operator.resolution) * (operator.magnitude() or 1.0) / length
    near, far = ((operator.slope(vector, step) - operator.slope(vector, -step)) / (2 * step) for step in (h, 2 * h))
    return near, abs(far - near)
