"""A mean loss over batches as a function of the parameters: what all curvature is the curvature of."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from learnmech.probes.curvature.space import Space, dot

T = TypeVar("T")

Loss = Callable[[Sequence[Tensor]], Tensor]
"""A mean loss as a function of the list of parameters it is given."""

Inside = Callable[[Sequence[Tensor], Callable[[], T]], T]
"""Runs some work while a model holds the given parameters; plain functions of the parameters need none."""


class Unmeasurable(RuntimeError):
    """Curvature of this loss cannot be had, by any method; the message says why."""


class NonFinite(ArithmeticError):
    """The loss or its gradient is NaN or infinite, so its Hessian means nothing."""


class Objective:
    """L(w) = sum_i n_i L_i(w) / sum_i n_i, seen through its values and first derivatives.

    A vector is flat: the parameters one after another, each in row-major order, in the widest dtype among them and
    at least float32. Neither storage nor `.grad` of `parameters` is written.

    Args:
        parameters: Leaves that require gradients, such as `[p.detach().requires_grad_() for p in model.parameters()]`.
        losses: Functions of such a list, each the mean over its own examples. A function must return the same value
            whenever it is given the same parameters.
        names: Names of the parameters, for messages.
        weights: Weight n_i of each loss, usually its number of examples. None: equal.
        inside: Runs work while a model holds the parameters. Losses and derivatives are all computed inside, because
            activation checkpointing recomputes the forward pass during the backward pass.

    Attributes:
        loss: L(w), NaN before it was evaluated at w.
        unused: Parameters that do not enter the loss, once a gradient was taken.
        resolution: Relative spacing of the coarsest parameter type.

    Raises:
        ValueError: No parameters, no losses, or weights that do not match them.
        Unmeasurable: A parameter is complex, or not of a floating type.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        losses: Sequence[Loss],
        *,
        names: Sequence[str] | None = None,
        weights: Sequence[float] | None = None,
        inside: Inside[Tensor] | None = None,
    ) -> None:
        if not parameters or not losses:
            raise ValueError(
                f"a Hessian needs parameters and losses; came {len(parameters)} parameters and {len(losses)} losses"
            )
        self.names = list(names or (f"parameter {index}" for index in range(len(parameters))))
        for name, p in zip(self.names, parameters, strict=True):
            if not p.is_floating_point():
                raise Unmeasurable(f"{name} is of type {p.dtype}; the Hessian is defined for real parameters")
        weights = [1.0] * len(losses) if weights is None else [float(w) for w in weights]
        if len(weights) != len(losses) or not all(w > 0 and math.isfinite(w) for w in weights):
            raise ValueError(f"weights are {weights}; expected {len(losses)} positive numbers, one per batch")
        self.parameters = list(parameters)
        self.shapes = [p.shape for p in parameters]
        self.sizes = [p.numel() for p in parameters]
        self.weights = [w / sum(weights) for w in weights]
        dtype = torch.float32
        for p in parameters:
            dtype = torch.promote_types(dtype, p.dtype)
        self.space = Space(sum(self.sizes), dtype, parameters[0].device)
        self.resolution = max(torch.finfo(p.dtype).eps for p in parameters)
        self._together = all(p.device == self.space.device for p in parameters)
        self.unused: tuple[str, ...] = ()
        self.loss = math.nan
        self._losses = list(losses)
        self._inside: Inside[Tensor] = inside or (lambda _, work: work())
        self._seen: list[float | None] = [None] * len(losses)

    def elsewhere(self, parameters: Sequence[Tensor]) -> "Objective":
        """Return the same loss as an objective at other parameters, leaves that require gradients."""
        return Objective(parameters, self._losses, names=self.names, weights=self.weights, inside=self._inside)

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._losses)

    def inside(self, parameters: Sequence[Tensor], work: Callable[[], Tensor]) -> Tensor:
        """Run `work` while the model holds `parameters`; `evaluated` is called inside only."""
        return self._inside(parameters, work)

    def evaluated(self, index: int, parameters: Sequence[Tensor]) -> Tensor:
        """Return the loss of one batch as a scalar with a graph."""
        with torch.inference_mode(mode=False), torch.enable_grad():
            return _scalar(self._losses[index](parameters))

    def gradient_along(self, direction: Tensor | None = None, distance: float = 0.0) -> Tensor:
        """Return the gradient of L at w + distance * direction, from first derivatives only.

        Args:
            direction: Flat vector; None: at w itself. [size]
            distance: How far to go along it.

        Returns:
            Flat vector; it may hold NaN. [size]
        """
        at = self.parameters if direction is None else self.moved(direction, distance)
        return self.inside(at, lambda: self._gradient(at))

    def loss_along(self, direction: Tensor | None = None, distance: float = 0.0) -> Tensor:
        """Return L at w + distance * direction, a scalar tensor in float64, from forward passes only."""
        at = self.parameters if direction is None else self.moved(direction, distance)
        with torch.no_grad():
            return self.inside(at, lambda: self._value(at))

    def slope(self, direction: Tensor, distance: float) -> float:
        """Return the derivative of L along a direction at w + distance * direction; it may be NaN."""
        directions = self.split(direction)
        at = self.moved(direction, distance)
        return float(self.inside(at, lambda: self._slope(at, directions)))

    def moved(self, direction: Tensor, distance: float) -> list[Tensor]:
        """Return fresh leaves at w + distance * direction."""
        steps = self.split(direction)
        return [(p.detach() + distance * d.to(p)).requires_grad_() for p, d in zip(self.parameters, steps, strict=True)]

    def magnitude(self, direction: Tensor | None = None) -> float:
        """Return |w|, or with a direction v the size of the tensors that it moves, sqrt(sum_i |v_i|^2 |w_i|^2) / |v|.

        A large embedding would otherwise set the scale of steps that go along small tensors.
        """
        if direction is None or self.space.sharded:
            return float(self.space.norm(self.join(self.parameters)))
        moves = torch.stack([dot(piece, piece) for piece in torch.split(direction, self.sizes)])
        sizes = torch.stack([dot(w, w) for w in torch.split(self.join(self.parameters), self.sizes)])
        return float(((moves * sizes).sum() / moves.sum()).sqrt())

    def split(self, vector: Tensor) -> list[Tensor]:
        """Cut a flat vector into tensors of the parameters' shapes, each on its parameter's device."""
        pieces = torch.split_with_sizes(vector, self.sizes)
        if self._together and vector.device == self.space.device:
            return [piece.view(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]
        return [
            piece.view(shape).to(p.device) for piece, shape, p in zip(pieces, self.shapes, self.parameters, strict=True)
        ]

    def join(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """Lay tensors of the parameters' shapes one after another; None is zero. The inverse of `split`."""
        alike = self.space.dtype, self.space.device
        given = [t.detach().reshape(-1) for t in tensors if t is not None and (t.dtype, t.device) == alike]
        if len(given) == len(self.sizes):
            return torch.cat(given)
        result = self.space.zeros()  # filled piece by piece: `cat` of converted pieces would hold the vector twice
        for piece, tensor in zip(torch.split(result, self.sizes), tensors, strict=True):
            if tensor is not None:
                piece.copy_(tensor.detach().reshape(-1))
        return result

    def saw(self, index: int, loss: Tensor, gradients: Sequence[Tensor | None]) -> bool:
        """Look once at every loss at w: is it finite, which parameters enter; tell whether it was the first look.

        Raises:
            NonFinite: The loss is NaN or infinite.
            Unmeasurable: No parameter has a gradient.
        """
        if self._seen[index] is not None:
            return False
        value = float(loss.detach())
        if not math.isfinite(value):
            raise NonFinite(f"the loss of batch {index} is {value}")
        if all(g is None for g in gradients):
            raise Unmeasurable("no parameter has a gradient: the loss does not reach the parameters given")
        first = all(seen is None for seen in self._seen)
        self._seen[index] = value
        missing = tuple(name for name, g in zip(self.names, gradients, strict=True) if g is None)
        self.unused = missing if first else tuple(name for name in self.unused if name in missing)
        if all(seen is not None for seen in self._seen):
            self.loss = math.fsum(w * s for w, s in zip(self.weights, self._seen, strict=True) if s is not None)
        return True

    def differentiable(self, loss: Tensor) -> Tensor:
        """Return the loss if autograd can differentiate it.

        Raises:
            Unmeasurable: It has no graph.
        """
        if not loss.requires_grad:
            raise Unmeasurable(
                "the loss does not depend on any parameter through autograd (was it detached, or computed on "
                "other tensors than the model's parameters?)"
            )
        return loss

    def _gradient(self, at: Sequence[Tensor]) -> Tensor:
        total = self.space.zeros()
        for index, weight in enumerate(self.weights):
            loss = self.differentiable(self.evaluated(index, at))
            gradients = differentiated(loss, at)
            if at is self.parameters:
                self.saw(index, loss, gradients)
            total.add_(self.join([g if g is None else _dense(g) for g in gradients]), alpha=weight)
        return total

    def _value(self, at: Sequence[Tensor]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=self.space.device)
        for index, weight in enumerate(self.weights):
            with torch.inference_mode(mode=False), torch.no_grad():
                loss = _scalar(self._losses[index](at))
            total += weight * loss.detach().to(total)
        return total

    def _slope(self, at: Sequence[Tensor], directions: Sequence[Tensor]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for index, weight in enumerate(self.weights):
            loss = self.evaluated(index, at)
            gradients = differentiated(loss, at) if loss.requires_grad else []
            for gradient, direction in itertools.zip_longest(gradients, directions):
                if gradient is not None:
                    gradient = _dense(gradient)  # noqa: PLW2901
                    along = dot(gradient.double(), direction.double())  # in float64: differences of this are taken
                    total = total.to(along.device) + weight * along
        return total


def differentiated(
    loss: Tensor, at: Sequence[Tensor], *, create_graph: bool = False, retain_graph: bool | None = None
) -> list[Tensor | None]:
    """Return the gradient of a loss with respect to each of some leaves; None where autograd finds no path.

    Raises:
        Unmeasurable: Differentiation fails; or an operation ran a backward pass of its own, as reentrant activation
            checkpointing does. It leaves its part of the gradient in `.grad` of the leaves, and not in the result.
        OutOfMemoryError: There is not enough memory.
    """
    clean = [leaf for leaf in at if leaf.grad is None]
    try:
        gradients: list[Tensor | None] = list(
            torch.autograd.grad(loss, at, retain_graph=retain_graph, create_graph=create_graph, allow_unused=True)
        )
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # torch has no narrower type for "derivative is not implemented"
        raise Unmeasurable(f"the gradient of the loss cannot be computed: {error}") from error
    strayed = [leaf for leaf in clean if leaf.grad is not None]
    for leaf in strayed:
        leaf.grad = None
    if strayed:
        raise Unmeasurable(
            "an operation in the model runs a backward pass of its own (reentrant activation checkpointing?), so that "
            "its part of the gradient is missing; use_reentrant=False does without"
        )
    return gradients


def _dense(gradient: Tensor) -> Tensor:
    return gradient if gradient.layout is torch.strided else gradient.to_dense()


def _scalar(loss: Tensor) -> Tensor:
    if loss.numel() != 1:
        raise ValueError(
            f"the loss has shape {tuple(loss.shape)}; expected a scalar, the mean over the examples of the batch"
        )
    return loss.reshape(())
