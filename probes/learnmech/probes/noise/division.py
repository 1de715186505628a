"""Which scopes the noise is told of."""

from dataclasses import dataclass

from learnmech.probes.groups import LIMIT, plain_name, scopes
from learnmech.probes.probe import TrainingView


@dataclass(frozen=True, slots=True)
class Division:
    """Says which parameters are measured together.

    Attributes:
        per_layer: Whether module types and blocks are scopes.
        per_parameter: Whether every tensor is one, by its name.
        parameter_groups: Whether every parameter group of the optimizers is one, `group:0`, ...
        limit: Scopes by type at most, and scopes by depth at most.
    """

    per_layer: bool = True
    per_parameter: bool = False
    parameter_groups: bool = False
    limit: int = LIMIT

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ValueError(f"GradientNoiseScale(limit={self.limit!r}): expected how many scopes of a kind, from 1 on")

    def members(self, view: TrainingView) -> dict[str, list[str]]:
        """Return the scopes of a model as it is now, and the parameters in each."""
        found = scopes(
            view.model,
            view.parameters,
            per_parameter=self.per_parameter,
            optimizers=view.optimizers if self.parameter_groups else (),
            limit=self.limit,
        )
        if self.per_layer:
            return found
        tensors = {plain_name(view.model, name) for name in view.parameters} if self.per_parameter else set()
        return {s: names for s, names in found.items() if not s or s.startswith("group:") or s in tensors}
