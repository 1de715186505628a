"""Which way to products works for this model: tried in order of exactness, remembered, and told once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from learnmech.probes.curvature.arithmetic import Arithmetic
from learnmech.probes.curvature.check import Agreement, compare
from learnmech.probes.curvature.objective import NonFinite, Objective, Unmeasurable
from learnmech.probes.curvature.operators.double_backward import HessianOperator
from learnmech.probes.curvature.operators.finite_differences import DifferenceOperator
from learnmech.probes.curvature.operators.gauss_newton import GaussNewtonOperator
from learnmech.probes.curvature.operators.operator import NotTwiceDifferentiable, Operator
from learnmech.probes.curvature.operators.rounded import Rounded, Rounding
from learnmech.probes.curvature.operators.scaled import Scaled, flat_scale
from learnmech.probes.curvature.operators.soundness import nothing_hidden, repeatable

EXACT, DIFFERENCES, GAUSS_NEWTON = "double_backward", "finite_differences", "gauss_newton"

METHODS = ("auto", EXACT, DIFFERENCES, GAUSS_NEWTON)

ORDER = (EXACT, DIFFERENCES)
"""What `auto` tries. Gauss-Newton is another matrix and never stands in for the Hessian."""

USELESS = 0.05
"""Differences whose own error is larger are passed over by `auto`: on ReLU networks it is 0.1 to 4, in bfloat16 0.01
to 0.2, on smooth networks in float32 below 2e-3."""

RECHECK = 20
"""Uses after which a method is put to the probe again, along another direction: at about eight gradients a probe, and
eight a measurement, 5 % more. Where the parameters are others than at the last use, it is put to the probe at once."""


class Choice:
    """Builds the operator of an objective by the best method that works, and remembers it for later measurements.

    `auto` tries double backward, then finite differences. At the first use each is put to a probe: one product
    along a direction between the gradient and a random vector, and its v'Hv against differences of gradients. A method
    is passed over if it fails there, if an operation in the graph has no second derivative, if differences agree
    with one another and not with it, or (differences) if their own error leaves nothing to rely on. Before that, two
    evaluations of the loss must agree, and parameters without gradient must not move it. If nothing works,
    `Unmeasurable` says why for each method.

    A different matrix is never passed off as the Hessian: Gauss-Newton products come from `Choice("gauss_newton")`
    only, and what is found with them has a name of its own. A caller that wants them as a substitute says so:

        choice, substitute = Choice(), Choice("gauss_newton")
        try:
            operator = choice.operator(objective)        # sharpness
        except Unmeasurable as reason:
            operator = substitute.operator(objective)    # sharpness_gauss_newton, with the reason

    What works at first may go wrong later (a schedule switches on dropout of its own, another kernel is chosen, a layer
    is unfrozen): the probe is repeated along a new direction every `RECHECK` uses, and when the parameters are
    others. What only shows in a product or at the top vector is told by `doubt(reason)`: the next operator is then of
    the next method.

    Within `arithmetic.around` a loss that training computes in half precision is evaluated in float32.

    **What it costs.** At first use: two forward passes, a gradient, a product, and two to six gradients; where it falls
    to differences, eight to twenty gradients more. Measured: 8 training steps, 13 with differences. The same at
    every recheck; its product counts among those of the operator.

    Args:
        method: `auto`, or one method to insist on: `double_backward`, `finite_differences`, `gauss_newton`. Differences
            that were insisted on are never passed over; their error tells whether a result can be trusted.

    Attributes:
        method: As given.
        arithmetic: Whether measurements are in float32; training's own with differences that were insisted on, since
            they are asked for where training's own kernels are to be used.
        reason: Why better methods were passed over, as a sentence; '' if none was.

    Raises:
        ValueError: There is no such method.
    """

    def __init__(self, method: str = "auto") -> None:
        if method not in METHODS:
            raise ValueError(f"method is {method!r}; expected one of {', '.join(map(repr, METHODS))}")
        self.method = method
        self.arithmetic = Arithmetic(allowed=method != DIFFERENCES)
        self._rounding = Rounding()
        self._names: list[str] = []
        self._probes = 0
        self._uses = 0
        self._forget()

    def _forget(self) -> None:
        self._left = list(ORDER) if self.method == "auto" else [self.method]
        self._objections: list[str] = []
        self._works = False
        self._step: float | None = None

    @property
    def reason(self) -> str:
        """Why better methods were passed over, as a sentence."""
        return "; ".join(self._objections)

    def doubt(self, reason: str) -> bool:
        """Take in that the last operator turned out wrong or unusable; tell whether there is another method to try.

        Args:
            reason: What was wrong with it, as a sentence.
        """
        if len(self._left) < 2:
            return False
        self._pass_over(reason)
        return True

    def operator(self, objective: Objective, *, scale: Sequence[Tensor] | None = None, retain: bool = True) -> Operator:
        """Return the operator of the objective, of S H S if a scale is given.

        Args:
            objective: The loss as a function of its parameters.
            scale: Diagonal of S, one tensor per parameter.
            retain: Keep graphs between products.

        Raises:
            Unmeasurable: No method works; the message has the reason for each. The next call tries all of them again.
        """  # noqa: DOC502 (raised below)
        flat = None if scale is None else flat_scale(objective, scale)
        self._uses += 1
        if self._works and self._uses % RECHECK and self._names == objective.names:
            self.arithmetic.widen(objective)
            return self._built(objective, flat, retain=retain)
        try:
            return self._found(objective, flat, retain=retain)
        except NonFinite:  # nothing to learn from that about methods: the first product will say it again
            return self._built(objective, flat, retain=retain)

    def _found(self, objective: Objective, scale: Tensor | None, *, retain: bool) -> Operator:
        self.arithmetic.settle(objective, lambda: repeatable(objective))
        self.arithmetic.widen(objective)
        self._uses, self._names = 0, objective.names
        gradient = objective.gradient_along()
        nothing_hidden(objective)
        direction = _direction(objective, gradient if scale is None else scale * gradient, self._probes)
        self._probes += 1
        while True:
            operator = self._built(objective, scale, retain=retain)
            objection = self._objection(operator, direction)
            if not objection:
                self._works = True
                return operator
            operator.release()
            last = len(self._left) == 1
            self._pass_over(f"{self._left[0].replace('_', ' ')}: {objection}")
            if last:
                reason = self.reason
                self._forget()
                raise Unmeasurable(reason)

    def _pass_over(self, objection: str) -> None:
        self._objections.append(objection)
        self._left.pop(0)
        self._works = False

    def _built(self, objective: Objective, scale: Tensor | None, *, retain: bool) -> Operator:
        if self._left[0] == DIFFERENCES:
            return DifferenceOperator(objective, scale=scale, step=self._step)
        if self._left[0] == GAUSS_NEWTON:
            return GaussNewtonOperator(objective, scale=scale, retain=retain)

        def exact(at: Objective, *, retain: bool = False) -> Operator:
            operator = HessianOperator(at, retain=retain)
            return operator if scale is None else Scaled(operator, scale)

        return Rounded(exact(objective, retain=retain), objective, exact, self._rounding)

    def _objection(self, operator: Operator, direction: Tensor) -> str:
        """Put an operator to the probe; return what speaks against it, or ''."""
        try:
            if isinstance(operator, DifferenceOperator):
                error = operator.calibrate(direction)
                self._step = operator.step
                if self.method == "auto" and not error <= USELESS:
                    return (
                        f"differences of gradients are off by about {error:.0%} of the Hessian, as on networks with "
                        "kinks (ReLU) and in low precision"
                    )
                return ""
            product = operator.matvec(direction)
        except NotTwiceDifferentiable as error:
            return str(error)
        except Unmeasurable as error:
            if self.method == "auto":
                raise
            return str(error)
        comparison = compare(operator, direction, float(operator.space.dot(direction, product)))
        if comparison.agreement is Agreement.DISAGREES:
            found = ", ".join(f"{difference:.4g}" for difference in comparison.differences)
            curvature = float(operator.space.dot(direction, product))
            return f"an operation has a wrong second derivative: v'Hv is {curvature:.4g}, by differences {found}"
        return ""


def _direction(objective: Objective, gradient: Tensor, seed: int) -> Tensor:
    """Return a unit vector along which curvature is large enough to compare, and that sees every parameter."""
    space = objective.space
    drawn = objective.split(space.draw(space.generator(seed)))
    # every tensor alike: a wrong derivative in a small one would vanish beside millions of others
    noise = space.unit(
        objective.join([piece / piece.norm().clamp(min=torch.finfo(piece.dtype).tiny) for piece in drawn])
    )
    length = space.norm(gradient)
    return space.unit(noise + gradient / length) if bool(length > 0) and bool(torch.isfinite(length)) else noise
