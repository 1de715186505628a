"""Values that are recorded when they change, and once at the start."""

from learnmech.wire import Measurement, Status


class Changes:
    """Remembers what was recorded last, so that only changes are recorded."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], tuple[float | None, str]] = {}

    def note(self, observable: str, value: float | None, scope: str = "", reason: str = "") -> list[Measurement]:
        """Return the measurement to record, or nothing if the value is the one in force.

        Args:
            observable: Name.
            value: The value; None when there is none.
            scope: Scope.
            reason: Why there is no value: recorded with status `unsupported`.
        """
        if self._last.get((observable, scope)) == (value, reason):
            return []
        self._last[observable, scope] = (value, reason)
        status = Status.UNSUPPORTED if value is None else Status.OK
        return [Measurement(observable, value, scope=scope, status=status, reason=reason)]
