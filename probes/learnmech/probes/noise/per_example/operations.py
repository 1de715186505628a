"""Operations on parameters outside known layers, by their node: products with a matrix, and whatever broadcasts."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from learnmech.probes.noise.per_example.forms import Dense, Form, Outer, Unsupported
from learnmech.probes.noise.per_example.graph import Consumer, Path
from learnmech.probes.noise.per_example.layers import wide

Axis = Callable[[torch.Size], int]
"""Tells which dimension of a shape counts examples."""

Derive = Callable[[Tensor], Form]
"""From the gradient of the operation's result to what the parameter gets."""

MATRIX_PRODUCTS = {("Addmm", 2): "_saved_mat1", ("Mm", 1): "_saved_self"}
FACTORS = {0: "_saved_other", 1: "_saved_self"}


def derive(consumer: Consumer, shape: torch.Size, axis: Axis, *, saved: bool) -> Derive:
    """Return how to get a parameter's per-example gradients at an operation.

    Args:
        consumer: The operation.
        shape: Shape of the parameter.
        axis: Where the examples are.
        saved: Tensors that the graph has saved may be looked at. Where they are not kept (checkpointing), looking
            would compute them.

    Raises:
        Unsupported: It is another operation, or examples cannot be told apart in it.
    """
    key = (consumer.operation, consumer.input)
    if key in MATRIX_PRODUCTS:
        x = _saved(consumer, MATRIX_PRODUCTS[key], saved=saved)
        return _matrix_product(consumer, shape, axis(consumer.shape), x)
    if consumer.operation in {"Add", "Sub", "Expand"} or key == ("Addmm", 0):
        return _broadcast(consumer, shape, axis(consumer.shape), _sign(consumer))
    if consumer.operation == "Mul":
        other = _saved(consumer, FACTORS[consumer.input], saved=saved)
        return _broadcast(consumer, shape, axis(consumer.shape), other)
    raise Unsupported(f"it enters an operation without a rule ({consumer.operation})")


def per_example(d: Tensor, axis: int, shape: Sequence[int]) -> Tensor:
    """Sum the gradient of a result over what a tensor was broadcast along, except over examples, [B, ...].

    Raises:
        Unsupported: The tensor has a dimension for examples itself.
    """
    aligned = axis - (d.dim() - len(shape))  # the tensor's dimension that meets the examples
    if aligned >= 0 and shape[aligned] != 1:
        raise Unsupported("it has rows of its own for each example")
    rest = [1] * (d.dim() - len(shape)) + list(shape)
    del rest[axis]
    return d.movedim(axis, 0).sum_to_size([d.shape[axis], *rest])


def _matrix_product(consumer: Consumer, shape: torch.Size, axis: int, x: Tensor) -> Derive:
    path, leading = consumer.path, consumer.shape[:-1]
    if not path.ordered or len(shape) != 2:
        raise Unsupported("it enters a product with a matrix through a view")

    def rows(tensor: Tensor) -> Tensor:  # [rows, n] -> [B, 1, T, n]
        tensor = tensor.reshape(*leading, tensor.shape[-1]).movedim(axis, 0)
        return tensor.reshape(len(tensor), 1, -1, tensor.shape[-1])

    def form(d: Tensor) -> Form:
        # y = x M: the gradient of M is x^T d, that of M^T is d^T x
        left, right = rows(wide(x)), rows(wide(d))
        if path.transposed:
            left, right = right, left
        return Outer(_placed(left, path, shape[0]), right)

    return form


def _broadcast(consumer: Consumer, shape: torch.Size, axis: int, factor: Tensor | float) -> Derive:
    path, result = consumer.path, consumer.shape  # not the node, whose hook will hold `form`

    def form(d: Tensor) -> Form:
        d = wide(d)
        d = d * (wide(factor) if isinstance(factor, Tensor) else factor)
        summed = per_example(d.reshape(result), axis, path.shape)
        values = summed.reshape(len(summed), -1)
        if not path.ordered or path.transposed or (len(shape) > 1 and path.start):
            return Dense(values, moved=True)
        return Dense(_placed(values, path, shape.numel()))

    return form


def _placed(values: Tensor, path: Path, rows: int) -> Tensor:
    """Put a piece of a split where it was cut out, with zeros around it, along the last dimension."""
    after = rows - path.start - values.shape[-1]
    return functional.pad(values, (path.start, after)) if path.start or after else values


def _sign(consumer: Consumer) -> float:
    """Return the factor of the parameter in a sum: `alpha` belongs to the second term."""
    if consumer.operation not in {"Add", "Sub"} or consumer.input == 0:
        return 1.0
    alpha = float(getattr(consumer.node, "_saved_alpha", 1.0))
    return alpha if consumer.operation == "Add" else -alpha


def _saved(consumer: Consumer, attribute: str, *, saved: bool) -> Tensor:
    if not saved:
        raise Unsupported("what it is multiplied with is not kept (activation checkpointing, or offloading)")
    tensor = getattr(consumer.node, attribute, None)
    if not isinstance(tensor, Tensor):
        raise Unsupported(f"the graph does not show what it is multiplied with ({consumer.operation})")
    return tensor.detach()
