"""Exact products of a Hessian with vectors, by differentiating the gradient once more (Pearlmutter 1994)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from learnmech.probes.curvature.objective import Objective, Unmeasurable, differentiated
from learnmech.probes.curvature.operators.graph import broken_node, kinked_node, resolution
from learnmech.probes.curvature.operators.on_objective import OnObjective
from learnmech.probes.curvature.operators.operator import NotTwiceDifferentiable


class HessianOperator(OnObjective):
    """The Hessian of an objective by double backward. One product costs two gradients on a retained graph, three fresh.

    **Which missing derivatives count as zero.** A parameter whose *first* gradient is None does not enter the loss: its
    rows are zero, and `unused` lists it for comparison with what training saw. A gradient without a graph of its own
    (a loss linear in every parameter) is constant, so its rows are zero too, as are columns that the second
    differentiation leaves None: nothing that depends on the parameters reaches them. The same None appears when an
    operation hides its dependence; a graph that ends in an error node is refused here, and the rest is
    what the finite-difference check and the symmetry check of `top_eigenvalues` are for.

    Args:
        objective: The loss as a function of its parameters.
        retain: Keep the graph of the gradients between products: faster, at the memory of one double backward of all
            losses. False builds it anew for every product and loss.
    """

    method = "double_backward"
    error = 0.0
    uncertainty = 0.0

    def __init__(self, objective: Objective, *, retain: bool = True) -> None:
        super().__init__(objective)
        self._retain = retain
        self._graphs: list[list[Tensor | None] | None] = [None] * len(objective)
        self._inspected = [False] * len(objective)
        self._coarsest = objective.resolution

    @property
    def resolution(self) -> float:
        """Relative spacing of the coarsest type among parameters and, after the first product, all that they enter."""
        return self._coarsest

    def matvec(self, vector: Tensor) -> Tensor:
        """Return H v.

        Args:
            vector: Flat vector. [size]

        Returns:
            A new flat vector. [size]

        Raises:
            ValueError: The vector has another shape.
            NotTwiceDifferentiable: Differentiating twice fails, or would be silently wrong.
            NonFinite: The loss is NaN or infinite.
        """  # noqa: DOC502 (raised below)
        self._may_begin(vector)
        self.products += 1
        directions = self.objective.split(vector)
        return self.objective.inside(self.objective.parameters, lambda: self._product(directions))

    def gradient(self) -> Tensor:
        """Return the gradient of the loss at w, flat; from the graph of the products where that is kept [size]."""
        objective = self.objective
        if not self._retain:
            return objective.gradient_along()

        def work() -> Tensor:
            total = self.space.zeros()
            for index, weight in enumerate(objective.weights):
                total.add_(objective.join(self._gradients(index)), alpha=weight)
            return total

        return objective.inside(objective.parameters, work)

    def release(self) -> None:
        """Free the retained graphs; the next product builds them again."""
        self._graphs = [None] * len(self.objective)

    def _product(self, directions: Sequence[Tensor]) -> Tensor:
        first, *others = self.objective.weights
        total = self._differentiated(self._gradients(0), directions)
        if first != 1.0:
            total.mul_(first)
        for index, weight in enumerate(others, start=1):
            total.add_(self._differentiated(self._gradients(index), directions), alpha=weight)
        return total

    def _differentiated(self, gradients: Sequence[Tensor | None], directions: Sequence[Tensor]) -> Tensor:
        """Return the derivative of sum(g * d) with respect to the parameters: H d, H being symmetric."""
        live = [
            (g, d.to(g.dtype)) for g, d in zip(gradients, directions, strict=True) if g is not None and g.requires_grad
        ]
        if not live:
            return self.space.zeros()
        outputs, weights = zip(*live, strict=True)
        try:
            seconds = torch.autograd.grad(
                outputs, self.objective.parameters, grad_outputs=weights, retain_graph=self._retain, allow_unused=True
            )
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # torch has no narrower type for "derivative is not implemented"
            raise NotTwiceDifferentiable(f"differentiating the gradient failed: {error}") from error
        return self.objective.join(seconds)

    def _gradients(self, index: int) -> list[Tensor | None]:
        kept = self._graphs[index]
        if kept is not None:
            return kept
        objective = self.objective
        loss = objective.differentiable(objective.evaluated(index, objective.parameters))
        try:
            gradients = differentiated(loss, objective.parameters, create_graph=True)
        except Unmeasurable as error:  # there may be a gradient all the same, without a graph of its own
            raise NotTwiceDifferentiable(str(error)) from error
        objective.saw(index, loss, gradients)
        if not self._inspected[index]:
            self._inspected[index] = True
            _inspect(gradients)
            self.kinked = self.kinked or bool(kinked_node(loss))
            self._coarsest = max(self._coarsest, resolution(loss))
        if self._retain:
            self._graphs[index] = gradients
        return gradients


def _inspect(gradients: Sequence[Tensor | None]) -> None:
    """Look at the gradients of a loss once: can they be differentiated?"""
    if any(g is not None and g.layout != torch.strided for g in gradients):
        raise NotTwiceDifferentiable("a gradient is sparse (nn.Embedding(sparse=True)) and has no second derivative")
    if broken := broken_node(gradients):
        raise NotTwiceDifferentiable(
            f"the gradient goes through an operation without second derivative (autograd node {broken}); its part "
            "of the Hessian would silently be zero"
        )
