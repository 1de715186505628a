"""The identity of a sink: its URL without secrets, the same however it was typed."""

import re
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from learnmech.sinks.sink import SinkError

EXAMPLES = "sqlite:///learnmech.db, postgresql://user@host/database, http://127.0.0.1:8765 or spool:folder"

# What tells one database from another; every other parameter is a setting or a secret.
_IDENTIFYING = frozenset({"host", "port", "dbname"})
_DEFAULT_PORTS = {"http": 80, "https": 443, "postgresql": 5432}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9.-]*)(\+[A-Za-z0-9.-]+)?:")


def scheme(url: str) -> str:
    """Return the scheme that names the sink: `postgresql` for `postgresql+psycopg://...`.

    Raises:
        SinkError: The text is not a URL.
    """
    match = _SCHEME.match(url)
    # A single letter is a drive, not a scheme.
    if match is None or len(match[1]) == 1:
        # What stands before an @ may be a token, whatever else is wrong.
        shown = re.sub(r"[^/@\s]*@", "***@", url)
        raise SinkError(f"sink {shown!r} has no scheme; expected a URL such as {EXAMPLES}")
    return match[1].lower()


def identity(url: str) -> str:
    """Return the URL without user, password and settings, with relative paths made absolute.

    Two URLs with one identity name the same store, so that what one run left behind may be delivered by the next. It is
    safe to print, to log and to keep in a file.

    Raises:
        SinkError: The text is not a URL.
    """
    name = scheme(url)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise SinkError(f"sink of scheme {name!r}: {error}; expected a URL such as {EXAMPLES}") from error
    path = parts.path
    if name == "sqlite":
        path = _sqlite_path(unquote(path))
    elif name == "spool":
        # spool:folder, spool:/folder and spool://folder all name a folder.
        return f"spool:{spool_folder(url).absolute()}"
    query = urlencode(sorted((key, value) for key, value in parse_qsl(parts.query) if key in _IDENTIFYING))
    netloc = f"[{host}]" if ":" in host else host
    if port is not None and port != _DEFAULT_PORTS.get(name):
        netloc += f":{port}"
    return f"{name}://{netloc}{path.rstrip('/')}{'?' + query if query else ''}"


def spool_folder(url: str) -> Path:
    """Return the folder that a `spool:` URL names.

    Raises:
        SinkError: It names none.
    """
    folder = unquote(url.partition(":")[2].removeprefix("//"))
    if not folder:
        raise SinkError(f"sink {url!r} names no folder; expected for instance spool:/scratch/measurements")
    return Path(folder).expanduser()


def _sqlite_path(path: str) -> str:
    # As SQLAlchemy reads it: three slashes start a relative path, four an absolute one.
    relative = path.removeprefix("/")
    if relative in {"", ":memory:"}:
        return "/:memory:"
    return f"/{Path(relative).absolute()}"
