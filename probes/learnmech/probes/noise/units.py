"""What the loss of a batch is a mean over: its examples, or the units that a function of the user's counts in it."""

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

from torch import Tensor

from learnmech.probes.isolation import Refusal, Skip

Units = Callable[[Any], float | Tensor]
"""Tells how many units of a batch its loss is a mean over."""

PATIENCE = 3
"""Batches in a row with a piece without units, after which there will be no others."""


def counted(units: Units, batch: Any) -> tuple[float | Tensor, str]:
    """Count the units of a batch without waiting for the device; return 0 and the reason where they cannot be counted.

    Args:
        units: The function.
        batch: The batch, or a piece of one.
    """
    try:
        found: Any = units(batch)
    except Exception as error:  # noqa: BLE001 (a function of the user's)
        return 0.0, f"units(batch) raised {type(error).__name__}: {error}"[:300]
    if isinstance(found, Tensor) and found.numel() == 1:
        return found.detach(), ""
    if isinstance(found, Real) and float(found) >= 0:  # zero: a piece without labels
        return float(found), ""
    return 0.0, f"units(batch) returned {found!r}; expected a number from 0 on, or a tensor of one"[:300]


class PieceUnits:
    """Counts the units of pieces that are evaluated on their own.

    Args:
        units: The function; None: examples are the units.
    """

    def __init__(self, units: Units | None) -> None:
        self._units = units
        self._failures = 0

    def of(self, pieces: Sequence[Any], sizes: Sequence[int]) -> list[float]:
        """Return the units of each piece. [K].

        Args:
            pieces: The pieces.
            sizes: Examples in each.

        Raises:
            Skip: There are none in a piece, whose loss is a mean over nothing.
            Refusal: The same several times in a row, or they cannot be counted.
        """
        if self._units is None:
            return [float(size) for size in sizes]
        found, troubles = zip(*(counted(self._units, piece) for piece in pieces), strict=True)
        if any(troubles):
            raise Refusal(next(filter(None, troubles)) + ".")
        numbers = [float(number) for number in found]
        if all(0 < number < math.inf for number in numbers):
            self._failures = 0
            return numbers
        self._failures += 1
        trouble = f"units(batch) counted {min(numbers):g} in a piece, whose loss is a mean over none"
        if self._failures < PATIENCE:
            raise Skip(trouble)
        raise Refusal(f"{trouble}.")
