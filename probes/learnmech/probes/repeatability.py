"""Is the loss a function of weights, batch and random numbers? Two evaluations tell.

A loss function that the user gives is taken at its word that it has no state outside the model. A counter in a closure,
an iterator, a generator of random numbers of its own, or a criterion with a moving average breaks that: measuring would
then change the training, and what is measured would not be the Hessian or the gradient of one function.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from learnmech.probes.isolation import PureLoss, Refusal, Source, isolated

TOLERANCE = 1e-5
"""Relative difference that counts as rounding: sums in another order differ by 1e-6 in float32, and a factor
that grew by 0.001 with each call changed the loss by 6e-5."""

REMEDY = "Keep that state in the model or its attributes, or leave it alone while learnmech.probes.is_probing()."


def unrepeatable(source: Callable[[], Source], batch: Any) -> str | None:
    """Evaluate the loss twice and compare.

    Args:
        source: Makes the source of the loss.
        batch: A batch.

    Returns:
        Why it cannot be measured, '' if it can, None if another batch must tell: the loss is not finite, or it
        raises, which each probe meets next and records.
    """

    def work(loss: PureLoss) -> tuple[float, float]:
        with torch.no_grad():
            return float(loss(batch)), float(loss(batch))

    try:
        first, second = isolated(source(), work, batch)
    except Refusal as refusal:
        return str(refusal)
    except Exception:  # noqa: BLE001 (a loss function may raise anything)
        return None
    if not (math.isfinite(first) and math.isfinite(second)):
        return None
    if math.isclose(first, second, rel_tol=TOLERANCE):
        return ""
    return (
        f"Two evaluations of the loss at the same weights, batch and random numbers gave {first:.6g} and {second:.6g}: "
        f"it has state that a measurement cannot put back. {REMEDY}"
    )
