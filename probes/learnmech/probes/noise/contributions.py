"""What pieces contribute to a gradient, as sums that add up over micro-batches and processes."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import overload

import torch
from torch import Tensor

from learnmech.observables import Status
from learnmech.probes.estimators.noise import Design, NoiseParts, noise_parts

Number = float | Tensor
"""A number, or a scalar tensor where it is only known to the device (a count of tokens): it is not waited for."""

COLUMNS = 4
"""Columns of `Sums.squares`: sum |h_k|^2, sum |h_k|^2 / w_k, sum n_k |h_k|^2, and how many pieces have a square that is
not finite."""

UNLIKE = 0.01
"""Squared coefficient of variation of sizes from which pieces differ: weighing them wrongly puts tr Sigma off by about
as much."""

SCALARS = 8
"""Fields of `Design`, in their order."""


def packed(scopes: int) -> int:
    """Return how many numbers `Sums.pack` makes."""
    return scopes * COLUMNS + SCALARS


class Sums:
    """Sums over the pieces k of one gradient g = sum_k h_k, for several scopes (groups of parameters).

    All that the estimates need of the pieces; `|g|^2` comes from the gradient itself. Everything stays on the device,
    and sums add up over micro-batches here, over processes in one all-reduce of `pack()`.

    Where data parallelism averages over R processes, what a process contributes to the gradient is 1/R of what its
    backward pass saw, hence |h_k|^2 is 1/R^2 of that.

    Differences of squares lose digits: a relative error e of the squared norms puts tr Sigma off by about
    e B |G|^2 / (K - 1), that is the noise scale by e B / (K - 1) examples; e is 1e-7 for float32 gradients.

    Args:
        scopes: How many scopes.
        device: Where the squared norms are.

    Attributes:
        squares: The four sums of each scope, in float64 where the device has it. [scopes, 4]
        scalars: Fields of `Design`.
    """

    def __init__(self, scopes: int, device: torch.device | str = "cpu") -> None:
        where = torch.device(device)
        dtype = torch.float32 if where.type == "mps" else torch.float64
        self.squares = torch.zeros(scopes, COLUMNS, dtype=dtype, device=where)
        self.scalars: list[Number] = [0.0] * SCALARS

    @property
    def scopes(self) -> int:
        """How many scopes."""
        return len(self.squares)

    def add_pieces(
        self, squares: Tensor, *, weight: Number = 1.0, units: Number = 1.0, examples: Number | None = None
    ) -> None:
        """Add K pieces at once, such as all examples of a batch.

        A piece of weight zero (a micro-batch whose tokens are all ignored) counts for nothing. Weights, units and
        examples are one number for all, or one for each. [K]

        Args:
            squares: |h_k|^2 of what each adds to the gradient. [scopes, K]
            weight: The weight w_k of a piece in the gradient, up to a factor that is the same for all: 1 where pieces
                are averaged as they are, the count of tokens where the loss is a mean over all tokens.
            units: Units n_k that its own gradient is a mean over.
            examples: Examples that these belong to; None: a unit is an example.
        """
        weight, units = self._here(weight), self._here(units)
        examples = units if examples is None else self._here(examples)
        if not isinstance(weight, Tensor) and weight <= 0:
            return
        with torch.no_grad():
            squares = squares.detach().to(self.squares)
            counts: Number = 1.0
            if isinstance(weight, Tensor):
                counts = (weight > 0).to(squares)
                squares = torch.where(weight > 0, squares, torch.zeros_like(squares))
            columns = (squares, _share(squares, weight), squares * units, ~squares.isfinite())
            self.squares += torch.stack([column.sum(dim=1).to(squares) for column in columns], dim=1)
            terms = (counts, weight, weight**2, _share(weight, units), _share(weight**2, units))
            sizes = (units * counts, examples * counts, units**2 * counts)
            pieces = squares.shape[1]
            self.scalars = [
                total + (term.sum() if isinstance(term, Tensor) and term.dim() else term * pieces)
                for total, term in zip(self.scalars, (*terms, *sizes), strict=True)
            ]

    def _here(self, value: Number) -> Number:
        """Bring a number to the device and precision of the sums."""
        if not isinstance(value, Tensor):
            return value
        # what the host knows it need not copy to a device, which would wait
        host = value.device.type == "cpu" != self.squares.device.type and not value.dim()
        return float(value) if host else value.detach().to(self.squares)

    def pack(self) -> Tensor:
        """Return all sums in one row on the device, to be added up over processes: as long in each of them.

        Returns:
            A new tensor. [packed(scopes)]
        """
        row = self.squares.new_empty(packed(self.scopes))
        row[:-SCALARS] = self.squares.flatten()
        for place, value in zip(row[-SCALARS:], self.scalars, strict=True):
            place.fill_(value)  # a kernel with a number in it, where a copy from the host would wait
        return row


@overload
def _share(a: Tensor, b: Number) -> Tensor: ...


@overload
def _share(a: Number, b: Number) -> Number: ...


def _share(a: Number, b: Number) -> Number:
    """Return a / b: zero where a is, infinite where only b is."""
    if isinstance(a, Tensor):
        return torch.where(a == 0, torch.zeros_like(a), a / b)
    if isinstance(b, Tensor) or b > 0:
        return a / b
    return math.inf


def estimates(
    row: Sequence[float], whole: Sequence[float], *, population: int | None = None, scale: float = 1.0
) -> list[NoiseParts]:
    """Estimate |G|^2 and tr Sigma of each scope, from sums that have been read back.

    Args:
        row: Numbers of `Sums.pack`. [packed(scopes)]
        whole: |g|^2 of the gradient that the pieces add up to, before clipping. [scopes]
        population: See `noise_parts`.
        scale: What the gradient and all contributions are still multiplied by: a loss scale, or done / expected
            micro-batches where an update has fewer of them than its weights say.

    Returns:
        The estimates in the order of the scopes.

    Raises:
        ValueError: The row does not fit as many scopes as there are squared norms.
    """
    scopes = len(whole)
    if len(row) != packed(scopes):
        raise ValueError(f"a row of {len(row)} numbers and {scopes} squared norms; expected {packed(scopes)} numbers")
    design = Design(*row[-SCALARS:])
    found = []
    for scope, total in enumerate(whole):
        own, weighted, sized, broken = (value for value in row[scope * COLUMNS : (scope + 1) * COLUMNS])
        # c_k = w_k / W, hence sum |h_k|^2 / c_k = W sum |h_k|^2 / w_k
        spread = design.weight * weighted - total
        parts = noise_parts(total / scale**2, own / scale**2, spread / scale**2, design, population=population)
        parts = replace(parts, lean=_lean(own, sized, design), weighted=_weighted(design))
        if parts.status is Status.NON_FINITE and broken:
            parts = replace(parts, reason=f"the gradient of {broken:.0f} of {design.pieces:.0f} pieces is not finite")
        found.append(parts)
    return found


def _weighted(design: Design) -> bool:
    """Tell whether pieces of unlike sizes have unlike weights."""
    return design.weight_sq * design.pieces > design.weight**2 * (1.0 + UNLIKE)


def _lean(own: float, sized: float, design: Design) -> float:
    """Say whether large pieces contribute as much more than small ones as their weights have it.

    |h_k|^2 has the mean c_k^2 (|G|^2 + tr Sigma / n_k): it falls with the size n_k where all pieces weigh alike, and
    rises with it at least as n_k does where they weigh n_k. So the mean of |h_k|^2 with weights n_k is

        z = (K sum n_k |h_k|^2) / (N sum |h_k|^2) - 1,    E z <= 0 or E z >= V

    more than the mean without, where V is the squared coefficient of variation of the sizes. In the middle it is z =
    V / 2, from which the lean is counted: negative if the weights are right.

    Args:
        own: sum |h_k|^2.
        sized: sum n_k |h_k|^2.
        design: Weights and sizes of the pieces.

    Returns:
        The lean; NaN if there is nothing to compare.
    """
    pieces, units = design.pieces, design.units
    if pieces < 2 or not own > 0.0 or not math.isfinite(sized) or not units > 0.0:
        return math.nan
    unlike = design.units_sq * pieces / units**2 - 1.0  # V
    if not unlike > UNLIKE:
        return math.nan
    excess = pieces * sized / (units * own) - 1.0
    return unlike / 2.0 - excess if _weighted(design) else excess - unlike / 2.0
