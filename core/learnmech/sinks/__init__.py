"""Sinks: where measurements go. A sink is a URL; its scheme names the entry point that takes it.

>>> identity("http://secret@Collector.example:8765/")
'http://collector.example:8765'
"""

from learnmech.sinks.address import identity
from learnmech.sinks.resolve import GROUP, resolve
from learnmech.sinks.sink import Refused, Sink, SinkError, SinkMissing, Unauthorized, Unavailable

__all__ = [
    "GROUP",
    "Refused",
    "Sink",
    "SinkError",
    "SinkMissing",
    "Unauthorized",
    "Unavailable",
    "identity",
    "resolve",
]
