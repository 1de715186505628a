"""Which probes are well: failures are counted, a probe that fails three times in a row is disabled."""

from dataclasses import dataclass, field

LIMIT = 3
"""Consecutive failures after which a probe is disabled."""


@dataclass(slots=True)
class Health:
    """Failures and refusals by probe name.

    Attributes:
        failures: Consecutive failures.
        off: Probes that do not run any more, each with the reason.
    """

    failures: dict[str, int] = field(default_factory=dict)
    off: dict[str, str] = field(default_factory=dict)

    def well(self, name: str) -> bool:
        """Tell whether a probe still runs."""
        return name not in self.off

    def succeeded(self, name: str) -> None:
        """Forget earlier failures of a probe."""
        self.failures.pop(name, None)

    def failed(self, name: str, reason: str) -> bool:
        """Count a failure; tell whether it was the last one allowed."""
        self.failures[name] = self.failures.get(name, 0) + 1
        if self.failures[name] >= LIMIT:
            self.off[name] = reason
        return name in self.off

    def refuse(self, name: str, reason: str) -> None:
        """Switch a probe off because it cannot be had."""
        self.off[name] = reason
