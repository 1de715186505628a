"""From a URL to a sink, through the entry points: core names no component that could be missing."""

import importlib.metadata
import re
from typing import TYPE_CHECKING, cast

from learnmech.sinks.address import EXAMPLES, identity, scheme
from learnmech.sinks.sink import Sink, SinkError, SinkMissing

if TYPE_CHECKING:
    from collections.abc import Callable

GROUP = "learnmech.sinks"
"""The entry-point group: the name is a URL scheme, the object takes the URL and returns a `Sink`."""

_EXTRAS = {"http": "probes", "https": "probes", "spool": "probes", "sqlite": "collector", "postgresql": "postgres"}
_MISTYPED = {"postgres": "postgresql", "sqlite3": "sqlite", "file": "spool", "tcp": "http"}


def resolve(url: str) -> Sink:
    """Return the sink that a URL names; a malformed URL, or a scheme that no sink has, is a `SinkError`.

    Raises:
        SinkMissing: What takes this scheme is not installed; the sentence says what to install.
    """
    name = scheme(url)
    safe = identity(url)
    entries = importlib.metadata.entry_points(group=GROUP, name=name)
    if not entries:
        error = _unknown(name, url, safe)
        raise error
    try:
        # Loading may succeed where opening finds that a driver is missing, so both are one step.
        open_sink = cast("Callable[[str], Sink]", next(iter(entries)).load())
        return open_sink(url)
    except ModuleNotFoundError as error:
        raise SinkMissing(
            f"the sink {safe} needs the {_EXTRAS.get(name, name)} extra (no module {error.name!r} here): "
            f"pip install 'learnmech[{_EXTRAS.get(name, name)}]'"
        ) from error


def _unknown(name: str, url: str, safe: str) -> SinkError:
    if name in _EXTRAS:
        return SinkMissing(
            f"nothing installed here takes {safe}: pip install 'learnmech[{_EXTRAS[name]}]' "
            "(an older learnmech may shadow the one you installed)"
        )
    hint = f"; did you mean {_MISTYPED[name]}?" if name in _MISTYPED else ""
    if re.fullmatch(r"[^/@]+:\d+(/.*)?", url):
        hint = f"; did you mean http://{url}?"
    known = sorted(entry.name for entry in importlib.metadata.entry_points(group=GROUP))
    return SinkError(
        f"no sink takes the scheme {name!r} (installed: {', '.join(known) or 'none'}){hint}; expected {EXAMPLES}"
    )
