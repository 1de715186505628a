"""The wire: messages between probes, spool, collector and store, defined once (`messages`), and their bytes (`codec`).

>>> from learnmech.wire import Measurement, encode, decode
>>> decode(encode(Measurement("sharpness", 5.0)), Measurement).value
5.0
"""

from learnmech.observables import Status
from learnmech.wire.codec import Format, WireError, decode, encode
from learnmech.wire.messages import (
    MAX_STEP,
    VERSION,
    Ack,
    Batch,
    Event,
    Frame,
    Lineage,
    Measurement,
    Rejection,
    RunInfo,
)

__all__ = [
    "MAX_STEP",
    "VERSION",
    "Ack",
    "Batch",
    "Event",
    "Format",
    "Frame",
    "Lineage",
    "Measurement",
    "Rejection",
    "RunInfo",
    "Status",
    "WireError",
    "decode",
    "encode",
]
