"""The space of flat vectors that a curvature problem lives in: products, norms, random vectors."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

SLICE = 1 << 20
"""Numbers of a vector that are worked on at a time on the CPU, so that what is made in between stays small: a dot
product of 10 million numbers took 27 ms at once and 3 ms in slices; up to a million there was no difference."""


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return a'b as a scalar tensor, in float64, of products and sums in the vectors' own type.

    `sum` adds up pairwise. On the CPU `torch.dot` adds up one after another: in float32, the norm of a vector with one
    large component among ten million small ones came out 1e-3 off, since each small product vanishes beside the sum
    (and 1e-5 off in slices of 64 thousand). Nor through matrix products: those round to TF32 or bfloat16 where training
    has allowed it.

    In float32 products below 1e-38 vanish, and a sum above 3e38 is infinite; `Space.dots` looks after that.
    """
    if a.is_cpu and a.numel() > SLICE:
        pairs = zip(torch.split(a, SLICE), torch.split(b, SLICE), strict=True)
        return torch.stack([(x * y).sum() for x, y in pairs]).sum(dtype=torch.float64)
    return (a * b).sum().double()


def _wide_dot(a: Tensor, b: Tensor) -> Tensor:
    """Return a'b as a scalar tensor, of products in float64: slower, and right for numbers of any size in float32."""
    pairs = zip(torch.split(a, SLICE), torch.split(b, SLICE), strict=True)
    return torch.stack([(x.double() * y.double()).sum() for x, y in pairs]).sum()


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

    Attributes:
        smallest: Length of a vector of numbers that their type just holds at full precision.
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
        kind = torch.finfo(dtype)
        self.smallest = math.sqrt(self.dimension) * kind.tiny
        self._least = self.dimension * kind.tiny / kind.eps

    @property
    def sharded(self) -> bool:
        """Whether this process holds a part of each vector."""
        return self.dimension != self.size

    def dots(self, rows: Sequence[Tensor], vector: Tensor) -> Tensor:
        """Return r'v for each row r, in float64, with one reduction for all of them [len(rows)].

        Where the numbers are so small or so large that products leave the range of the vectors' type, they are formed
        in float64: eigenvalues and gradients of 1e-25 or 1e25 are as right as any.
        """
        if not rows:
            return torch.zeros(0, dtype=torch.float64, device=self.device)
        found = self.reduced(torch.stack([dot(row, vector) for row in rows]))
        if all(map(self.in_range, found.tolist())):
            return found
        return self.reduced(torch.stack([_wide_dot(row, vector) for row in rows]))

    def in_range(self, value: float) -> bool:
        """Tell whether a dot product is right: neither were products lost below the range of their type, nor above it.

        Each of n products that is too small is off by the least normal number at most. All of them together are within
        rounding of a value above n tiny / eps, which is 1e-24 for ten million numbers in float32.
        """
        return self._least <= abs(value) < math.inf

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a'b as a scalar tensor, in float64."""
        found = self.reduced(dot(a, b))
        return found if self.in_range(float(found)) else self.reduced(_wide_dot(a, b))

    def norm(self, vector: Tensor) -> Tensor:
        """Return |v| as a scalar tensor, in float64."""
        return self.dot(vector, vector).sqrt()

    def unit(self, vector: Tensor) -> Tensor:
        """Return v / |v|; NaN if v is zero."""
        return vector / float(self.norm(vector))

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
