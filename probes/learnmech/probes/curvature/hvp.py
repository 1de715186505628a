"""Exact products of a Hessian with vectors, by differentiating the gradient once more (Pearlmutter 1994)."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from learnmech.probes.curvature.flat import norm
from learnmech.probes.curvature.graph import broken_node

T = TypeVar("T")

Loss = Callable[[Sequence[Tensor]], Tensor]
"""A mean loss as a function of the list of parameters it is given."""

Inside = Callable[[Sequence[Tensor], Callable[[], T]], T]
"""Runs some work while a model holds the given parameters; plain functions of the parameters need none."""


class NotTwiceDifferentiable(RuntimeError):
    """The loss has no usable second derivative with respect to the parameters; the message says why."""


class NonFinite(ArithmeticError):
    """The loss or its gradient is NaN or infinite, so its Hessian means nothing."""


class HessianOperator:
    """The symmetric matrix S H S with H = sum_i w_i Hessian(loss_i), seen only through its products with vectors.

    H is taken at `parameters`, of which neither storage nor `.grad` is written. S is the identity, or `diag(scale)`:
    with scale = P^(-1/2) the operator has the spectrum of P^(-1) H, the curvature a preconditioned optimizer meets.

    A vector is flat: the parameters one after another, each in row-major order, in the widest dtype among them and
    at least float32. One product costs two gradients on a retained graph, three on a fresh one.

    **Which missing derivatives count as zero.** A parameter whose *first* gradient is None does not enter the loss: its
    rows are zero, and `unused` lists it for comparison with what training saw. A gradient without a graph of its own
    (a loss linear in every parameter) is constant, so its rows are zero too, as are columns that the second
    differentiation leaves None: nothing that depends on the parameters reaches them. The same None appears when an
    operation hides its dependence; a graph that ends in an error node is refused here, and the rest is
    what the finite-difference check and the symmetry check of `top_eigenvalues` are for.

    Args:
        parameters: Leaves that require gradients, such as `[p.detach().requires_grad_() for p in model.parameters()]`.
        losses: Functions of such a list, each the mean over its own examples. A function must return the same value
            whenever it is given the same parameters.
        names: Names of the parameters, for messages.
        weights: Weight of each loss, usually its number of examples; normalised to sum one. None: equal.
        scale: Diagonal of S, one tensor per parameter, of the parameter's shape.
        inside: Runs work while a model holds the parameters. Losses and derivatives are all computed inside, because
            activation checkpointing recomputes the forward pass during the backward pass.
        retain: Keep the graph of the gradients between products: faster, at the memory of one double backward of all
            losses. False builds it anew for every product and loss.

    Raises:
        ValueError: No parameters, no losses, or weights or scale that do not match them.
        NotTwiceDifferentiable: A parameter is complex.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        losses: Sequence[Loss],
        *,
        names: Sequence[str] | None = None,
        weights: Sequence[float] | None = None,
        scale: Sequence[Tensor] | None = None,
        inside: Inside[Tensor] | None = None,
        retain: bool = True,
    ) -> None:
        if not parameters or not losses:
            raise ValueError(
                f"a Hessian needs parameters and losses; came {len(parameters)} parameters and {len(losses)} losses"
            )
        if any(p.is_complex() for p in parameters):
            raise NotTwiceDifferentiable("a parameter is complex; the Hessian is defined for real parameters")
        weights = [1.0] * len(losses) if weights is None else [float(w) for w in weights]
        if len(weights) != len(losses) or not all(w > 0 and math.isfinite(w) for w in weights):
            raise ValueError(f"weights are {weights}; expected {len(losses)} positive numbers, one per batch")
        self.parameters = list(parameters)
        self.shapes = [p.shape for p in parameters]
        self.sizes = [p.numel() for p in parameters]
        self.size = sum(self.sizes)
        self.dtype = torch.float32
        for p in parameters:
            self.dtype = torch.promote_types(self.dtype, p.dtype)
        self.device = parameters[0].device
        self.products = 0
        self.unused: tuple[str, ...] = ()
        self.loss = math.nan
        self._names = list(names or (f"parameter {index}" for index in range(len(parameters))))
        self._losses = list(losses)
        self._weights = [w / sum(weights) for w in weights]
        self._scale = None if scale is None else self._checked(scale)
        self._inside: Inside[Tensor] = inside or (lambda _, work: work())
        self._retain = retain
        self._graphs: list[list[Tensor | None] | None] = [None] * len(losses)
        self._seen: list[float | None] = [None] * len(losses)

    def matvec(self, vector: Tensor) -> Tensor:
        """Return S H S v.

        Args:
            vector: Flat vector. [size]

        Returns:
            A new flat vector. [size]

        Raises:
            ValueError: The vector has another shape.
            NotTwiceDifferentiable: Differentiating twice fails, or would be silently wrong.
            NonFinite: The loss is NaN or infinite.
        """  # noqa: DOC502 (raised below)
        if vector.shape != (self.size,):
            raise ValueError(f"vector has shape {tuple(vector.shape)}; expected ({self.size},), all parameters flat")
        self.products += 1
        directions = self.split(self._scaled(vector))
        product = self._inside(self.parameters, lambda: self._product(directions))
        return self._scaled(product)

    def slope(self, vector: Tensor, distance: float) -> float:
        """Return the derivative of the loss along S v at parameters + distance S v, from first derivatives only.

        Central differences of this are an account of v' S H S v that does not pass through double backward.

        Args:
            vector: Flat vector v. [size]
            distance: How far to go along S v.

        Returns:
            The directional derivative; it may be NaN.
        """
        directions = self.split(self._scaled(vector))
        moved = [
            (p.detach() + distance * d.to(p)).requires_grad_() for p, d in zip(self.parameters, directions, strict=True)
        ]
        return float(self._inside(moved, lambda: self._slope(moved, directions)))

    def moved(self, vector: Tensor) -> Tensor:
        """Return S v, the direction in parameter space that a vector of the scaled problem stands for."""
        return self._scaled(vector)

    def magnitude(self) -> float:
        """Return |w|, the norm of all parameters."""
        return float(norm(self.join(self.parameters)))

    def split(self, vector: Tensor) -> list[Tensor]:
        """Cut a flat vector into tensors of the parameters' shapes, each on its parameter's device."""
        pieces = torch.split(vector, self.sizes)
        return [
            piece.view(shape).to(p.device) for piece, shape, p in zip(pieces, self.shapes, self.parameters, strict=True)
        ]

    def join(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """Lay tensors of the parameters' shapes one after another; None is zero. The inverse of `split`."""
        pieces = [
            torch.zeros(size, dtype=self.dtype, device=self.device)
            if tensor is None
            else tensor.detach().reshape(-1).to(device=self.device, dtype=self.dtype)
            for tensor, size in zip(tensors, self.sizes, strict=True)
        ]
        return torch.cat(pieces)

    def release(self) -> None:
        """Free the retained graphs; the next product builds them again."""
        self._graphs = [None] * len(self._losses)

    def _checked(self, scale: Sequence[Tensor]) -> Tensor:
        shapes = [tuple(s.shape) for s in scale]
        expected = [tuple(shape) for shape in self.shapes]
        if shapes != expected:
            raise ValueError(f"the preconditioner has shapes {shapes}; expected those of the parameters, {expected}")
        return self.join(list(scale))

    def _scaled(self, vector: Tensor) -> Tensor:
        return vector if self._scale is None else vector * self._scale

    def _product(self, directions: Sequence[Tensor]) -> Tensor:
        total = torch.zeros(self.size, dtype=self.dtype, device=self.device)
        for index, weight in enumerate(self._weights):
            gradients = self._gradients(index)
            total.add_(self._differentiated(gradients, directions), alpha=weight)
        return total

    def _differentiated(self, gradients: Sequence[Tensor | None], directions: Sequence[Tensor]) -> Tensor:
        """Return the derivative of sum(g * d) with respect to the parameters: H d, H being symmetric."""
        live = [
            (g, d.to(g.dtype)) for g, d in zip(gradients, directions, strict=True) if g is not None and g.requires_grad
        ]
        if not live:
            return torch.zeros(self.size, dtype=self.dtype, device=self.device)
        outputs, weights = zip(*live, strict=True)
        try:
            seconds = torch.autograd.grad(
                outputs, self.parameters, grad_outputs=weights, retain_graph=self._retain, allow_unused=True
            )
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # torch has no narrower type for "derivative is not implemented"
            raise NotTwiceDifferentiable(f"differentiating the gradient failed: {error}") from error
        return self.join(seconds)

    def _gradients(self, index: int) -> list[Tensor | None]:
        kept = self._graphs[index]
        if kept is not None:
            return kept
        loss = self._evaluated(index, self.parameters)
        if not loss.requires_grad:
            raise NotTwiceDifferentiable(
                "the loss does not depend on any parameter through autograd (was it detached, or computed on "
                "other tensors than the model's parameters?)"
            )
        gradients: list[Tensor | None] = list(
            torch.autograd.grad(loss, self.parameters, create_graph=True, allow_unused=True)
        )
        if self._seen[index] is None:
            self._inspect(index, loss, gradients)
        if self._retain:
            self._graphs[index] = gradients
        return gradients

    def _inspect(self, index: int, loss: Tensor, gradients: Sequence[Tensor | None]) -> None:
        """Look once at every loss: is it finite, which parameters enter, can its gradient be differentiated?"""
        value = float(loss.detach())
        if not math.isfinite(value):
            raise NonFinite(f"the loss of batch {index} is {value}")
        if all(g is None for g in gradients):
            raise NotTwiceDifferentiable("no parameter has a gradient: the loss does not reach the parameters given")
        if any(g is not None and g.layout != torch.strided for g in gradients):
            raise NotTwiceDifferentiable(
                "a gradient is sparse (nn.Embedding(sparse=True)) and has no second derivative"
            )
        if broken := broken_node(gradients):
            raise NotTwiceDifferentiable(
                f"the gradient goes through an operation without second derivative (autograd node {broken}); its part "
                "of the Hessian would silently be zero"
            )
        self._seen[index] = value
        missing = tuple(name for name, g in zip(self._names, gradients, strict=True) if g is None)
        first = all(seen is None for i, seen in enumerate(self._seen) if i != index)
        self.unused = missing if first else tuple(name for name in self.unused if name in missing)
        if all(seen is not None for seen in self._seen):
            self.loss = math.fsum(w * s for w, s in zip(self._weights, self._seen, strict=True) if s is not None)

    def _slope(self, moved: Sequence[Tensor], directions: Sequence[Tensor]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for index, weight in enumerate(self._weights):
            loss = self._evaluated(index, moved)
            gradients = torch.autograd.grad(loss, moved, allow_unused=True) if loss.requires_grad else ()
            for gradient, direction in itertools.zip_longest(gradients, directions):
                if gradient is not None:
                    along = (gradient.double() * direction.double()).sum()  # in float64: differences of this are taken
                    total = total.to(along.device) + weight * along
        return total

    def _evaluated(self, index: int, parameters: Sequence[Tensor]) -> Tensor:
        with torch.inference_mode(mode=False), torch.enable_grad():
            loss = self._losses[index](parameters)
        if loss.numel() != 1:
            raise ValueError(
                f"the loss has shape {tuple(loss.shape)}; expected a scalar, the mean over the examples of the batch"
            )
        return loss.reshape(())
