"""Is v'Hv what the gradients say? The one account of curvature that does not pass through double backward."""

import enum
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:  # the choice between operators compares, so at run time operators import this
    from learnmech.probes.curvature.operators.operator import Operator

TOLERANCE = 0.02
"""Accepted relative difference; at a step of 1e-4 |w| it was below 0.3 % in each of 72 measurements on tanh and GELU
networks in float32 (initial, in training and trained, squared loss and cross-entropy, 8 to 512 examples)."""

STEPS = {torch.float64: (3e-6, 1e-5, 1e-6)}
"""Steps to either side, relative to |w|. The first is the best; the others tell whether it can be trusted."""
STEPS_FLOAT32 = (1e-4, 3e-4, 3e-5)
"""Error balance of a central difference in float32: curvature of higher order above, rounding of gradients below."""

SPREAD = 4.0
"""A Hessian is called wrong if the differences at all steps disagree with it at least this many times more than with
one another. It called 71 or 72 of 72 smooth ones wrong when their Hessian was off by 10 % or more, and none of 120
right ones under bfloat16 autocast. Kinks make differences scatter, by up to 500 % along top vectors; where a step
crosses many of them it averages over them, and differences agree with one another at 3 to 5 % from the (right) second
derivative. So a Hessian is never called wrong where the graph of the loss has a kink."""


SETTLED = 0.9
"""Differences whose disagreement shrinks by more than a tenth from the largest step to the smallest are still on their
way: the loss bends within a step, as behind a large embedding and a LayerNorm, where they read 0.05, 0.17 and 0.44
on the way to a (right) 4.7."""


class Agreement(enum.Enum):
    """What finite differences of the gradient say about the second derivative."""

    AGREES = "finite differences agree"
    DISAGREES = "finite differences agree with one another and not with the second derivative"
    INCONCLUSIVE = "finite differences scatter too much to tell, as they do on ReLU networks and in low precision"
    SKIPPED = "not compared"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Curvature along one direction by two routes.

    Attributes:
        agreement: The outcome.
        differences: v'Hv by finite differences, one number per step that was tried.
    """

    agreement: Agreement
    differences: tuple[float, ...] = ()


NOT_COMPARED = Comparison(Agreement.SKIPPED)


def compare(operator: "Operator", vector: Tensor, curvature: float) -> Comparison:
    """Compare v'Av, found by double backward, with central differences of the gradient along v.

    d = (v' g(w + h S v) - v' g(w - h S v)) / 2h, with h so that |h S v| is a small part of the tensors that it moves.
    The cost is two gradients when the first step agrees, six otherwise. Only the quadratic form is compared, never the
    vector Hv: on ReLU networks that differs even where everything is right, because second derivatives leave the kinks
    out.

    What it cannot see: a wrong second derivative in a network with kinks, or along other directions than v.

    Args:
        operator: The operator A = S H S.
        vector: Unit vector v. [size]
        curvature: v'Av as the operator gave it.

    Returns:
        The outcome with the differences.
    """
    if operator.method.startswith("gauss_newton"):
        return NOT_COMPARED  # differences of gradients tell of the Hessian, and this is another matrix
    if operator.resolution > torch.finfo(torch.float32).eps:
        return Comparison(Agreement.INCONCLUSIVE)  # half-precision weights cannot move by so little
    direction = operator.moved(vector)
    length = float(operator.space.norm(direction))
    if not math.isfinite(length) or length == 0.0:
        return Comparison(Agreement.INCONCLUSIVE)
    unit = (operator.magnitude(direction) or operator.magnitude() or 1.0) / length
    differences: list[float] = []
    for step in STEPS.get(operator.space.dtype, STEPS_FLOAT32):
        h = step * unit
        differences.append((operator.slope(vector, h) - operator.slope(vector, -h)) / (2 * h))
        if abs(differences[-1] - curvature) <= TOLERANCE * abs(curvature):
            return Comparison(Agreement.AGREES, tuple(differences))
    errors = [difference - curvature for difference in differences]
    if not all(math.isfinite(error) for error in errors):
        return Comparison(Agreement.INCONCLUSIVE, tuple(differences))
    smallest, spread = min(map(abs, errors)), max(errors) - min(errors)
    # in order of the steps: the first is in the middle
    settled = abs(errors[2]) >= SETTLED * abs(errors[1])
    told = not operator.kinked and settled and smallest >= SPREAD * spread and smallest > 0
    return Comparison(Agreement.DISAGREES if told else Agreement.INCONCLUSIVE, tuple(differences))
