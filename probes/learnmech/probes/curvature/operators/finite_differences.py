"""Products of a Hessian with vectors by central differences of gradients: for whatever differentiates once only."""

import math

import torch
from torch import Tensor

from learnmech.probes.curvature.objective import Objective
from learnmech.probes.curvature.operators.account import Account
from learnmech.probes.curvature.operators.on_objective import OnObjective

BALANCE = 1.2e4
"""The step is (eps / BALANCE)^(1/3) |w|: 2e-4 |w| in float32, 3e-7 |w| in float64.

Relative to |A|, rounding contributes c eps / s at a step s |w|, and truncation t s^2; the sum is least at
s^3 = c eps / 2t. Measured on networks with tanh, GELU and LayerNorm, a CNN with batch norm, an LSTM and a transformer
(200 to 26 000 parameters, initial and trained, along random vectors, the gradient and the top vector, float32):
c = 1/6 and less, and t from 1 to 1000, the largest along the top vector of trained networks: 2 t / c = 1.2e4.
At this step every error was below 5e-4, where the best step of each case would have given 1e-6 to 1e-4."""

LADDER = (1.0, 8.0, 64.0, 1 / 8)
"""Steps tried in turn, in units of that one, as long as none is good: the rounding of bfloat16 inside a float32 model
asks for 40 times the step, an activation with a sharp bend for a shorter one."""

GOOD = 1e-2
"""Relative error at which no other step is tried."""


def default_step(resolution: float) -> float:
    """Return the step relative to |w| that balances rounding against truncation, for parameters of a given spacing."""
    return math.pow(resolution / BALANCE, 1 / 3)


class DifferenceOperator(OnObjective):
    """S H S by central differences: H d = (g(w + h d) - g(w - h d)) / 2h for the unit vector d along S v.

    Only first derivatives are taken, so training's own kernels will do. Of the error of a product, truncation is
    h^2 |D^3 g[d, d, d]| / 6, and the rounding of gradients and of w + h d is about eps / h. On networks with kinks
    (ReLU, max pooling) differences see the kinks, and the error falls only as h^(-1/2): it is 10 to 100 %.

    **What it costs.** Two gradients per product; one at w, if nobody took it before; and two for each look at the
    error, by a second product with twice the step: along the first vector and the fourth, and when a product is twice
    as long as at the last look, at most four times. `calibrate` costs eight, and up to twelve more where the usual
    step is not good.

    Args:
        objective: The loss as a function of its parameters. Of a subclass only public methods are relied on.
        scale: Diagonal of S, flat; None: 1. Given here, `error` is that of the scaled matrix. [size]
        step: h in units of |w|; None: `default_step`.

    Attributes:
        products: Products so far.
        gradients: Gradients so far, those at w and those spent on the error included.
        step: The step h in units of |w|.
    """

    method = "finite_differences"

    def __init__(self, objective: Objective, *, scale: Tensor | None = None, step: float | None = None) -> None:
        super().__init__(objective, scale)
        self.gradients = 0
        self.step = default_step(objective.resolution) if step is None else step
        self._account = Account()

    @property
    def error(self) -> float:
        """Relative error |A v - product| / |A|, at most, from products with two steps; 0 before the first product."""
        return self._account.error

    @property
    def uncertainty(self) -> float:
        """Error |A v - product| of the product of a unit vector."""
        return self._account.uncertainty

    def matvec(self, vector: Tensor) -> Tensor:
        """Return S H S v, to `error` |A| |v|.

        Args:
            vector: Flat vector of any length. [size]

        Returns:
            A new flat vector; it may hold NaN. [size]

        Raises:
            ValueError: The vector has another shape.
            NonFinite: The loss is NaN or infinite.
            Unmeasurable: The loss has no gradient.
        """  # noqa: DOC502 (the last two raised by the objective)
        self._may_begin(vector)
        if math.isnan(self.loss):  # once: is it finite, which parameters enter
            self.gradient()
        self.products += 1
        length = float(self.space.norm(vector))
        if length == 0.0:
            return self.space.zeros()
        product = self._difference(vector, self.step)
        norm = float(self.space.norm(product)) / length
        if self._account.due(norm):
            wider = self._difference(vector, 2 * self.step)
            self._account.look(norm, float(self.space.norm(wider - product)) / length)
        return product

    def calibrate(self, vector: Tensor) -> float:
        """Choose the step along a vector and its image, which is close to the vectors that matter; return the error.

        Args:
            vector: Flat vector that A does not send to zero, such as the gradient. [size]
        """
        image = self.matvec(vector)
        if bool(self.space.norm(image) > 0):
            vector = self.space.unit(image)
        best: tuple[float, float, Account] | None = None
        usual = self.step
        for factor in LADDER:
            self.step = factor * usual
            self._account = Account()
            self.matvec(vector)
            error = self.error if self._account.looks else math.inf
            if best is None or error < best[0]:
                best = error, self.step, self._account
            if best[0] <= GOOD:
                break
        if best is not None:
            _, self.step, self._account = best
        return self.error

    def gradient(self) -> Tensor:
        """Return S g at w, flat [size]."""
        self.gradients += 1
        return self._scaled(self.objective.gradient_along())

    def release(self) -> None:
        """Do nothing: no graph outlives a gradient."""

    def _difference(self, vector: Tensor, step: float) -> Tensor:
        """Return the product by differences at w +- step |w| d, d being the unit vector along S v."""
        direction = self.moved(vector)
        length = float(self.space.norm(direction))
        if length == 0.0 or not math.isfinite(length):
            return torch.full_like(vector, 0.0 if length == 0.0 else math.nan)
        h = step * (self.magnitude() or 1.0) / length  # in units of S v
        self.gradients += 2
        difference = self.objective.gradient_along(direction, h)
        difference.sub_(self.objective.gradient_along(direction, -h)).div_(2 * h)
        return self._scaled(difference)
