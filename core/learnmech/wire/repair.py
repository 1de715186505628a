"""Save what can be saved of a frame that is no valid message: one bad number must not take the others with it."""

from typing import Any

import msgspec

from learnmech.wire.messages import Event, Frame, Measurement, Rejection

_ADVICE = "; learnmech.wire.Measurement says what it may be"
_frames = msgspec.msgpack.Decoder(Frame)


def read_frame(payload: bytes) -> tuple[Frame, list[Rejection]] | None:
    """Decode a frame, piece by piece where it is no valid message as a whole.

    Args:
        payload: A `Frame` in MessagePack.

    Returns:
        The frame without its invalid parts and a rejection for each invalid measurement, or None when even its
        sequence, step or time cannot be read.
    """
    try:
        return _frames.decode(payload), []
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _repair(payload)


def _repair(payload: bytes) -> tuple[Frame, list[Rejection]] | None:
    try:
        raw = msgspec.msgpack.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError):
        return None
    if not isinstance(raw, dict):
        return None
    try:
        bare = msgspec.convert({key: raw.get(key) for key in ("sequence", "step", "time")}, Frame)
    except msgspec.ValidationError:
        return None
    rejections: list[Rejection] = []
    measurements: list[Measurement] = []
    for index, item in enumerate(_listed(raw.get("measurements"))):
        try:
            measurements.append(msgspec.convert(item, Measurement))
        except msgspec.ValidationError as error:
            name = str(item.get("observable", ""))[:250] if isinstance(item, dict) else ""
            rejections.append(Rejection(bare.sequence, index, name, f"{error}{_ADVICE}"))
    events = [event for item in _listed(raw.get("events")) if (event := _event(item)) is not None]
    return (
        Frame(
            sequence=bare.sequence,
            step=bare.step,
            time=bare.time,
            samples=_count(raw.get("samples")),
            tokens=_count(raw.get("tokens")),
            measurements=measurements,
            events=events,
        ),
        rejections,
    )


def _listed(item: object) -> list[Any]:
    return item if isinstance(item, list) else []


def _event(item: object) -> Event | None:
    try:
        return msgspec.convert(item, Event)
    except msgspec.ValidationError:
        return None


def _count(item: object) -> int | None:
    return item if isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 2**63 else None
