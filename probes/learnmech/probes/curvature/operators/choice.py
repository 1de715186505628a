"""Which way to products works for this model: tried in order of exactness, remembered, and told once."""

from collections.abc import Sequence

from torch import Tensor

from learnmech.probes.curvature.objective import Objective
from learnmech.probes.curvature.operators.double_backward import HessianOperator
from learnmech.probes.curvature.operators.operator import Operator
from learnmech.probes.curvature.operators.scaled import Scaled, flat_scale


class Choice:
    """Builds the operator of an objective by the best method that works.

    Args:
        method: `auto`, or one method to insist on.

    Attributes:
        reason: Why better methods were passed over; '' if none was.
    """

    def __init__(self, method: str = "auto") -> None:
        self.method = method
        self.reason = ""

    def operator(self, objective: Objective, *, scale: Sequence[Tensor] | None = None, retain: bool = True) -> Operator:
        """Return the operator of the objective, scaled if a scale is given."""
        operator: Operator = HessianOperator(objective, retain=retain)
        return operator if scale is None else Scaled(operator, flat_scale(objective, scale))
