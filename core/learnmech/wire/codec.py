"""Bytes to messages and back: MessagePack between programs, JSON for people and other languages."""

import math
from typing import Any, Literal, TypeVar

import msgspec

from learnmech.wire.messages import VERSION, Batch, Lineage

Format = Literal["msgpack", "json"]
T = TypeVar("T")

# JSON has no NaN and no infinities; they travel as these strings.
_NON_FINITE = {"nan": math.nan, "inf": math.inf, "+inf": math.inf, "-inf": -math.inf}
_NUMBERS = ("value", "stderr")

_msgpack_encoder = msgspec.msgpack.Encoder()


class WireError(ValueError):
    """Bytes that are not the message they should be. `str()` is a sentence for the sender."""


def encode(message: msgspec.Struct, encoding: Format = "msgpack") -> bytes:
    """Turn a message into bytes.

    Args:
        message: Any Struct of `learnmech.wire`.
        encoding: `msgpack` keeps NaN and infinities as IEEE numbers; `json` writes them as `"nan"`, `"inf"`, `"-inf"`.
    """
    if encoding == "msgpack":
        return _msgpack_encoder.encode(message)
    return msgspec.json.encode(_spell_non_finite(msgspec.to_builtins(message)))


def decode(data: bytes, kind: type[T], encoding: Format = "msgpack") -> T:
    """Turn bytes into a message.

    Raises:
        WireError: The bytes are cut off, not of this format, of another version, or a field is of the wrong type or out
            of range; the sentence says which field.
    """
    try:
        message = msgspec.msgpack.decode(data, type=kind) if encoding == "msgpack" else _decode_json(data, kind)
    except msgspec.ValidationError as error:
        raise WireError(_other_version(data, encoding) or f"not a {kind.__name__}: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(
            f"{len(data)} bytes that are not a whole {encoding} message ({error}); was the body cut off, or sent with "
            "another Content-Type?"
        ) from error
    if isinstance(message, Batch):
        _check(message)
    return message


def _decode_json(data: bytes, kind: type[T]) -> T:
    return msgspec.convert(_read_non_finite(msgspec.json.decode(data)), type=kind)


def _check(batch: Batch) -> None:
    """Check what a type cannot say: the version, finite times, increasing sequences."""
    if batch.version != VERSION:
        raise WireError(_version_sentence(batch.version))
    times = [("sent", batch.sent), ("run.created", batch.run.created)]
    if isinstance(batch.lineage, Lineage):
        times.append(("lineage.begun", batch.lineage.begun))
    for name, time in times:
        if not math.isfinite(time):
            raise WireError(f"not a Batch: {name} is {time}; expected seconds since the epoch")
    if batch.heartbeat and batch.frames:
        raise WireError("not a Batch: a heartbeat carries no frames; send the frames with heartbeat=false")
    previous = -1
    for position, frame in enumerate(batch.frames):
        if frame.sequence <= previous:
            raise WireError(
                f"not a Batch: frames[{position}].sequence is {frame.sequence} after {previous}; expected frames in "
                "increasing order of sequence"
            )
        previous = frame.sequence
        if not math.isfinite(frame.time) or not all(math.isfinite(event.time) for event in frame.events):
            raise WireError(
                f"not a Batch: a time in frames[{position}] is not finite; expected seconds since the epoch"
            )


def _other_version(data: bytes, encoding: Format) -> str:
    """Say so when the bytes are a message of another version, which explains every other mismatch."""
    try:
        raw = msgspec.msgpack.decode(data) if encoding == "msgpack" else msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    version = raw.get("version", VERSION) if isinstance(raw, dict) else VERSION
    return "" if version == VERSION else _version_sentence(version)


def _version_sentence(version: object) -> str:
    return (
        f"message version {version!r}, but this side speaks version {VERSION}; "
        "upgrade whichever of learnmech's two sides is older"
    )


def _spell_non_finite(item: Any) -> Any:
    if isinstance(item, float) and not math.isfinite(item):
        return "nan" if math.isnan(item) else "inf" if item > 0 else "-inf"
    if isinstance(item, dict):
        return {key: _spell_non_finite(value) for key, value in item.items()}
    if isinstance(item, list):
        return [_spell_non_finite(value) for value in item]
    return item


def _read_non_finite(message: Any) -> Any:
    """Undo `_spell_non_finite` where a number is expected, and nowhere else."""
    frames = message.get("frames") if isinstance(message, dict) else None
    for frame in frames if isinstance(frames, list) else ():
        measurements = frame.get("measurements") if isinstance(frame, dict) else None
        for measurement in measurements if isinstance(measurements, list) else ():
            if isinstance(measurement, dict):
                for key in _NUMBERS:
                    spelled = measurement.get(key)
                    if isinstance(spelled, str):
                        measurement[key] = _NON_FINITE.get(spelled.lower(), spelled)
    return message
