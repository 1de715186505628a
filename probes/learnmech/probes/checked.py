"""What may be recorded: measurements of declared observables, marked where they are not finite."""

import math

import msgspec

from learnmech.observables import get
from learnmech.wire import Measurement, Status


def checked(measurement: Measurement) -> Measurement:
    """Return a measurement as it may be recorded: declared, and marked if it is not finite.

    Raises:
        UnknownObservable: The observable is not declared.
    """  # noqa: DOC502 (raised by `get`)
    get(measurement.observable)
    value = measurement.value
    if value is not None and not math.isfinite(value) and measurement.status is Status.OK:
        return msgspec.structs.replace(measurement, status=Status.NON_FINITE)
    return measurement
