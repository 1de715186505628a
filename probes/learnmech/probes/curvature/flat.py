"""Dot products and norms of long flat vectors."""

from torch import Tensor


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return a'b as a scalar tensor, in float64.

    `sum` adds up pairwise. On the CPU `torch.dot` adds up one after another: in float32, the norm of a vector with one
    large component among five million small ones came out 5e-4 off, since each small product vanishes beside the sum.
    Nor through matrix products: those round to TF32 or bfloat16 where training has allowed it.
    """
    return (a * b).sum().double()


def norm(vector: Tensor) -> Tensor:
    """Return |v| as a scalar tensor, in float64."""
    return dot(vector, vector).sqrt()


def unit(vector: Tensor) -> Tensor:
    """Return v / |v|; NaN if v is zero."""
    result: Tensor = vector / norm(vector)
    return result
