"""Second try for a frame that could not be written as it came: too large, or holding what no message can."""

import contextlib
import json
from collections.abc import Sequence
from typing import Any

from learnmech.observables import MAX_NAME_LENGTH, Status
from learnmech.probes.delivery.notices import Notices
from learnmech.probes.delivery.spool import FrameTooLarge, Spool
from learnmech.wire import MAX_STEP, Event, Measurement

_TEXT = 2000  # characters of a text that made a frame too large


def put_mended(
    spool: Spool,
    notices: Notices,
    error: Exception,
    *,
    step: Any,
    measurements: Sequence[Measurement],
    events: Sequence[Event],
    counts: tuple[Any, Any],
) -> None:
    """Write a frame that failed, in pieces or with its numbers turned into plain ones. Never raises.

    Args:
        spool: Where to.
        notices: Where to say what is lost, if anything is.
        error: Why it failed.
        step: The step.
        measurements: What was measured.
        events: What happened.
        counts: Samples and tokens.
    """
    if not isinstance(error, FrameTooLarge):
        notices.note("mended", f"measurements of step {step} had to be converted: {error}")
    try:
        plain_step = min(max(0, int(step)), MAX_STEP)
        samples, tokens = (_count(count) for count in counts)
        _put(
            spool,
            plain_step,
            [plain(measurement) for measurement in measurements],
            [_plain_event(event, plain_step) for event in events],
            (samples, tokens),
        )
    except Exception as second:  # noqa: BLE001 (whatever is wrong with a measurement, training goes on)
        notices.note("unwritable", f"measurements of step {step} are lost, they cannot be written: {second!r}")


def plain(measurement: Any) -> Measurement:
    """Return a measurement whose numbers are plain floats; one that has none says so instead."""
    try:
        return Measurement(
            str(measurement.observable)[:MAX_NAME_LENGTH],
            _number(measurement.value),
            str(measurement.scope)[:MAX_NAME_LENGTH],
            _number(measurement.stderr),
            measurement.status if isinstance(measurement.status, Status) else Status.FAILED,
            str(measurement.reason)[:_TEXT],
            str(measurement.method)[:MAX_NAME_LENGTH],
            _number(measurement.cost),
        )
    except (TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        name = str(getattr(measurement, "observable", "user.unknown"))[:MAX_NAME_LENGTH]
        scope = str(getattr(measurement, "scope", ""))[:MAX_NAME_LENGTH]
        reason = f"not a measurement that can be written ({error}); expected numbers as float or None"[:_TEXT]
        return Measurement(name, None, scope, status=Status.FAILED, reason=reason)


def _put(
    spool: Spool,
    step: int,
    measurements: list[Measurement],
    events: list[Event],
    counts: tuple[int | None, int | None],
) -> None:
    try:
        spool.put(step, measurements, events, *counts)
    except FrameTooLarge:
        if len(measurements) + len(events) < 2:
            raise
        half, some = len(measurements) // 2, len(events) // 2
        _put(spool, step, measurements[:half], events[:some], counts)
        _put(spool, step, measurements[half:], events[some:], counts)


def _plain_event(event: Event, step: int) -> Event:
    data: dict[str, Any] = {"lost": "the event's data could not be written"}
    with contextlib.suppress(TypeError, ValueError, RecursionError):
        text = json.dumps(event.data, allow_nan=False)
        data = json.loads(text) if len(text) < 2**20 else {"lost": f"the event's data has {len(text)} characters"}
    severity = event.severity if event.severity in {"info", "warning", "error"} else "info"
    return Event(str(event.kind)[:MAX_NAME_LENGTH], step, float(event.time), str(event.message)[:_TEXT], severity, data)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _count(value: Any) -> int | None:
    with contextlib.suppress(TypeError, ValueError, RuntimeError, OverflowError):
        count = int(value)
        return count if 0 <= count <= MAX_STEP else None
    return None
