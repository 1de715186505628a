"""The values in force: what a law may look at when it predicts one measurement."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from learnmech.laws import Law, Value
from learnmech.observables import Status

Key = tuple[str, str]
"""Observable and scope."""


class Record(NamedTuple):
    """One stored measurement that counts."""

    step: int
    key: Key
    attempt: int
    value: float | None
    stderr: float | None
    status: Status


class Force:
    """The last value of each observable in each scope, and since when it has been the same."""

    def __init__(self, values: Mapping[Key, Value] | None = None) -> None:
        self.values = dict(values or {})

    def take(self, record: Record) -> None:
        """Put a newer record in force. A record with the same number goes on from where that number began."""
        before = self.values.get(record.key)
        same = before is not None and before.value == record.value
        since = before.since if before is not None and same else record.step
        self.values[record.key] = Value(record.value, record.stderr, record.step, since, record.status)

    def seen_by(self, law: Law, scope: str) -> dict[str, Value]:
        """Return the values that a law looks at: those of the scope itself, else those of the whole model."""
        found = {}
        for name in (*law.needs, *law.uses):
            value = self.values.get((name, scope), self.values.get((name, "")))
            if value is not None:
                found[name] = value
        return found

    def copy(self) -> "Force":
        """Return an independent copy."""
        return Force(self.values)


def names(laws: Sequence[Law]) -> list[str]:
    """Return the observables that any of these laws measures, needs or uses."""
    return sorted({name for law in laws for name in (*law.measures, *law.needs, *law.uses)})
