"""The space of flat vectors that a curvature problem lives in: products, norms, random vectors."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return a'b as a scalar tensor, in float64.

    `sum` adds up pairwise. On the CPU `torch.dot` adds up one after another: in float32, the norm of a vector with one
    large component among five million small ones came out 5e-4 off, since each small product vanishes beside the sum.
    Nor through matrix products: those round to TF32 or bfloat16 where training has allowed it.
    """
    return (a * b).sum().double()


class Space:
    """Flat vectors: the parameters one after another, each in row-major order.

    Every process holds `size` numbers of a vector. They are the whole vector in one process and under data parallelism
    (where all processes hold the same numbers), and its own shard where parameters are sharded; then `reduce` adds
    up over the processes, so that products and norms are those of the whole vector and the same everywhere.

    Args:
        size: Numbers held by this process.
        dtype: Their type.
        device: Where they are.
        dimension: Numbers of the whole vector; None: `size`.
        reduce: Sums a float64 tensor over the processes that hold the other shards, in place or not, and returns it.
            None where this process holds everything.
        salt: Added to seeds: differs between shards, so that their random numbers do.
    """

    def __init__(
        self,
        size: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        dimension: int | None = None,
        reduce: Callable[[Tensor], Tensor] | None = None,
        salt: int = 0,
    ) -> None:
        self.size = size
        self.dtype = dtype
        self.device = device
        self.dimension = size if dimension is None else dimension
        self.salt = salt
        self._reduce = reduce

    @property
    def sharded(self) -> bool:
        """Whether this process holds a part of each vector."""
        return self.dimension != self.size

    def dots(self, rows: Sequence[Tensor], vector: Tensor) -> Tensor:
        """Return r'v for each row r, in float64, with one reduction for all of them [len(rows)]."""
        if not rows:
            return torch.zeros(0, dtype=torch.float64, device=self.device)
        return self.reduced(torch.stack([dot(row, vector) for row in rows]))

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a'b as a scalar tensor, in float64."""
        return self.reduced(dot(a, b))

    def norm(self, vector: Tensor) -> Tensor:
        """Return |v| as a scalar tensor, in float64."""
        return self.dot(vector, vector).sqrt()

    def unit(self, vector: Tensor) -> Tensor:
        """Return v / |v|; NaN if v is zero."""
        result: Tensor = vector / self.norm(vector)
        return result

    def reduced(self, partial: Tensor) -> Tensor:
        """Return the sum over shards of numbers of which each process has its own part."""
        return partial if self._reduce is None else self._reduce(partial)

    def generator(self, seed: int) -> torch.Generator:
        """Return random numbers for this process: the same where vectors are replicated, others for each shard."""
        drawn = torch.Generator(self.device)
        drawn.manual_seed(seed + self.salt)
        return drawn

    def draw(self, generator: torch.Generator) -> Tensor:
        """Draw a vector of independent standard normal numbers [size]."""
        return torch.randn(self.size, generator=generator, device=self.device, dtype=self.dtype)

    def zeros(self) -> Tensor:
        """Return the zero vector [size]."""
        return torch.zeros(self.size, dtype=self.dtype, device=self.device)
