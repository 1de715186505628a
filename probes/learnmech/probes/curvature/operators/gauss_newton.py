"""Products of the Gauss-Newton matrix: the part of the Hessian that comes from the loss, not from the network."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from learnmech.probes.curvature.objective import Objective, Unmeasurable, differentiated
from learnmech.probes.curvature.operators.account import Account
from learnmech.probes.curvature.operators.finite_differences import default_step
from learnmech.probes.curvature.operators.jacobian import Part, check_adjoint, check_forward, pushed_forward, reversible
from learnmech.probes.curvature.operators.on_objective import OnObjective
from learnmech.probes.curvature.operators.operator import NotTwiceDifferentiable
from learnmech.probes.curvature.operators.outputs import check_cut, cut
from learnmech.probes.isolation.outputs import recorded

CONVEX = 1e-3
"""u' H_z u may be negative by this part of the largest |H_z u| |u| met: rounding gives 1e-6 in float32 and up to 1e-3
where a loss is evaluated in bfloat16."""


class GaussNewtonOperator(OnObjective):
    """S G S with G = mean of J' H_z J, where L = l(z(w)), J = dz/dw and H_z = d^2 l / dz^2 (Schraudolph 2002, sec. 3).

    For a loss that is convex in the outputs z (squares, cross-entropy) G is positive semidefinite: the Hessian without
    the part from the network's own curvature, *not* the Hessian. It needs no second derivative of the network.

    z is found by recording what modules return: see `learnmech.probes.curvature.operators.outputs.cut`. That the loss
    depends on the parameters through z alone is checked on the graph and by J' dl/dz = gradient; that H_z is
    positive semidefinite along every vector met; that J v is the adjoint of J' at every product.

    Reverse mode only: J v is the derivative of J' s with respect to s. One product costs about three gradients with a
    retained graph. Where a kernel's backward pass has no derivative, J v comes from central differences of the outputs
    at w +- h v: two forward passes, a method of its own (`gauss_newton_by_differences`) with an error of its own.

    Args:
        objective: The loss as a function of its parameters; modules must be called in it.
        scale: Diagonal of S, flat; None: 1. [size]
        retain: Keep graphs between products.
        differences: Take J v by differences from the start.

    Attributes:
        products: Products so far.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        scale: Tensor | None = None,
        retain: bool = True,
        differences: bool = False,
    ) -> None:
        super().__init__(objective, scale)
        self.step = default_step(objective.resolution)
        self._retain = retain
        self._differences = differences
        self._parts: list[Part | None] = [None] * len(objective)
        self._places: list[int] = []  # of the outputs of all batches, once known
        self._account = Account()
        self._counts: dict[int, int] = {}  # how many outputs all modules of a batch return
        self._largest = 0.0  # |H_z u| / |u|

    @property
    def method(self) -> str:
        """How products come about."""
        return "gauss_newton_by_differences" if self._differences else "gauss_newton"

    @property
    def error(self) -> float:
        """Relative error of a product, at most: 0 in reverse mode, by differences from two steps."""
        return self._account.error

    @property
    def uncertainty(self) -> float:
        """Error of the product of a unit vector."""
        return self._account.uncertainty

    def matvec(self, vector: Tensor) -> Tensor:
        """Return S G S v.

        Args:
            vector: Flat vector. [size]

        Returns:
            A new flat vector. [size]

        Raises:
            ValueError: The vector has another shape.
            NonFinite: The loss is NaN or infinite.
            Unmeasurable: The loss is not a convex function of outputs that could be found.
        """  # noqa: DOC502 (NonFinite is raised by the objective)
        self._may_begin(vector)
        self.products += 1
        direction = self.moved(vector)
        if not self._differences:
            try:
                return self._scaled(self._product(direction, None))
            except NotTwiceDifferentiable:
                self._differences = True
                self.release()
        return self._by_differences(direction, float(self.space.norm(vector)))

    def gradient(self) -> Tensor:
        """Return S g at w, flat [size]."""
        return self._scaled(self.objective.gradient_along())

    def release(self) -> None:
        """Free the retained graphs; the next product builds them again."""
        self._parts = [None] * len(self.objective)

    def _by_differences(self, direction: Tensor, length: float) -> Tensor:
        far = float(self.space.norm(direction))
        if far == 0.0 or not math.isfinite(far):
            return torch.full_like(direction, 0.0 if far == 0.0 else math.nan)
        if not self._places:
            self._survey()
        h = self.step * (self.magnitude() or 1.0) / far
        product = self._scaled(self._product(direction, self._pushed(direction, h)))
        norm = float(self.space.norm(product)) / length
        if self._account.due(norm):
            wider = self._scaled(self._product(direction, self._pushed(direction, 2 * h)))
            self._account.look(norm, float(self.space.norm(wider - product)) / length)
        return product

    def _pushed(self, direction: Tensor, h: float) -> list[Tensor]:
        """Return J v for the outputs of all batches, one after another, by central differences at w +- h v."""
        ahead, behind = self._outputs(direction, h), self._outputs(direction, -h)
        return [(a - b).div_(2 * h) for a, b in zip(ahead, behind, strict=True)]

    def _outputs(self, direction: Tensor, distance: float) -> list[Tensor]:
        with recorded(frozenset(self._places)) as found:
            self.objective.loss_along(direction, distance)
        if len(found) != len(self._places):
            raise Unmeasurable("the network calls other modules at other weights, so its outputs cannot be compared")
        return [output.tensor.detach() for output in found]

    def _product(self, direction: Tensor, pushed: Sequence[Tensor] | None) -> Tensor:
        """Return G v; J v is given for all batches one after another, or found in reverse mode."""
        objective = self.objective
        directions = objective.split(direction)

        def work() -> Tensor:
            total = self.space.zeros()
            given = iter(pushed or ())
            for index, weight in enumerate(objective.weights):
                part = self._part(index)
                reverse = pushed is None
                outputs = pushed_forward(part, directions) if reverse else [next(given) for _ in part.cut.edges]
                curved = self._curved(part, outputs)
                pulled = torch.autograd.grad(
                    part.cut.edges, objective.parameters, curved, retain_graph=self._retain, allow_unused=True
                )
                if reverse:
                    check_adjoint(outputs, curved, pulled, directions)
                total.add_(objective.join(pulled), alpha=weight)
            return total

        return objective.inside(objective.parameters, work)

    def _curved(self, part: Part, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Return H_z u, and check u' H_z u >= 0."""
        live = [(s, u.to(s.dtype)) for s, u in zip(part.cut.slopes, outputs, strict=True) if s.requires_grad]
        try:
            seconds: Sequence[Tensor | None] = torch.autograd.grad(
                [s for s, _ in live], part.cut.edges, [u for _, u in live], retain_graph=True, allow_unused=True
            )
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise Unmeasurable(f"the loss cannot be differentiated twice at the outputs: {error}") from error
        curved = [torch.zeros_like(z) if y is None else y for y, z in zip(seconds, part.cut.outputs, strict=True)]
        along, squared, stretched = (
            math.fsum(float((a.double() * b.double()).sum()) for a, b in zip(left, right, strict=True))
            for left, right in ((outputs, curved), (outputs, outputs), (curved, curved))
        )
        if squared > 0:
            self._largest = max(self._largest, math.sqrt(stretched / squared))
        if along < -CONVEX * self._largest * squared:
            raise Unmeasurable(
                f"the loss is not convex in the outputs of the network (u'H_z u = {along:.3g} for |u| = "
                f"{math.sqrt(squared):.3g}), so its Gauss-Newton matrix is no curvature to rely on"
            )
        return curved

    def _part(self, index: int) -> Part:
        kept = self._parts[index]
        if kept is not None:
            return kept
        objective = self.objective
        with recorded() as found:
            loss = objective.differentiable(objective.evaluated(index, objective.parameters))
        found_cut = cut(loss, found, objective.parameters, objective.names)
        first = index not in self._counts
        if first:
            self._counts[index] = len(found)
            gradients = differentiated(loss, objective.parameters, retain_graph=True)
            objective.saw(index, loss, gradients)
            check_cut(found_cut, objective.parameters, gradients)
        part = Part(found_cut, [], []) if self._differences else reversible(found_cut, objective.parameters)
        if first and not self._differences:
            check_forward(part, objective.parameters, self.space.generator(0))
        if self._retain:
            self._parts[index] = part
        return part

    def _survey(self) -> None:
        """Find the places of the outputs of every batch among those of all batches."""

        def work() -> Tensor:
            before = 0
            for index in range(len(self.objective)):
                self._places += [before + place for place in self._part(index).cut.places]
                before += self._counts[index]
            return self.space.zeros()

        self.objective.inside(self.objective.parameters, work)
