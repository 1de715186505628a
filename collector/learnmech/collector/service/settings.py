"""What the service is told: its address, its database, its token and its limits.

Standard library only, so that `learnmech --help` lists the collector's commands where the extra is not installed.
"""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

DEFAULT_DB = "sqlite:///learnmech.db"
DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8765

ENVIRONMENT: Mapping[str, str] = {
    "LEARNMECH_DB": "Database URL (`sqlite:///FILE` or `postgresql://USER@HOST/NAME`).",
    "LEARNMECH_HOST": "Address to listen on.",
    "LEARNMECH_PORT": "Port to listen on; 0 takes a free one.",
    "LEARNMECH_TOKEN": "The bearer token itself.",
    "LEARNMECH_TOKEN_FILE": "File that holds the bearer token, for instance a mounted secret.",
}
"""The environment variables that `learnmech collect` reads; an option on the command line wins over its variable."""

# RFC 6750, section 2.1 (b64token): what an Authorization header can carry.
_TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")
# Below 16 characters even random base64 has less than 96 bits, and a shorter token was most likely typed by hand.
_TOKEN_LENGTH = 16
_ADVICE = "make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))' > token"


class SettingsError(ValueError):
    """A setting that cannot be used. `str()` says what came, what was expected and what to type instead."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that shapes one service.

    Attributes:
        host: Address to listen on. Anything but a loopback address needs a token.
        port: Port to listen on; 0 takes a free one.
        token: The bearer token that every request for data must carry; None asks for none.
        body_limit: Most bytes of a request body as sent.
        inflated_limit: Most bytes of a request body after decompression. Telemetry in MessagePack deflates about four
            times; a body that inflates further is an attack, not a batch.
        measurement_limit: Most measurements in one batch: what one transaction stores in about a second.
        body_timeout: Most seconds for a client to send its body, so that slow senders cannot hold the queue.
        ingest_queue: Most batches in memory at once; a client beyond that is told to come back before its body is read.
        stream_limit: Most open event streams.
        poll: Seconds between two looks at the store's revision, which is how writes by other processes are seen.
        refresh: Seconds between two looks at the runs' status when nothing was written (a run stalls silently).
        keep_alive: Seconds of silence on an event stream after which a comment keeps proxies from closing it.
        shutdown: Most seconds for requests under way and for the judge to finish at shutdown.

    Raises:
        SettingsError: The address and the token do not go together, or a value is out of range.
    """

    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    token: str | None = field(default=None, repr=False)
    body_limit: int = 4 << 20
    inflated_limit: int = 16 << 20
    measurement_limit: int = 20_000
    body_timeout: float = 30.0
    ingest_queue: int = 32
    stream_limit: int = 200
    poll: float = 0.5
    refresh: float = 5.0
    keep_alive: float = 15.0
    shutdown: float = 10.0

    def __post_init__(self) -> None:
        """Refuse what would expose the data or cannot work."""
        if not 0 <= self.port <= 65535:
            raise SettingsError(f"port {self.port} is out of range; expected 1 to 65535, or 0 for a free one")
        if self.token is not None:
            check_token(self.token, "the token")
        elif not is_loopback(self.host):
            raise SettingsError(
                f"host {self.host} can be reached from other machines, and no token is set; expected a token, or a "
                f"loopback address; {_ADVICE}; then add: --token-file token (or listen here only: --host 127.0.0.1)"
            )

    @property
    def address(self) -> str:
        """The host as it stands in a URL: an IPv6 address in brackets, the wildcard as a name that can be opened."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self.host, self.host)  # noqa: S104 (compared)
        return f"[{host}]" if ":" in host else host


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`. A name other than `localhost` may resolve anywhere: no."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_token(token: str, source: str) -> str:
    """Return `token` if it can protect anything.

    Raises:
        SettingsError: It is empty, too short, or holds characters that a header cannot carry.
    """
    if len(token) < _TOKEN_LENGTH:
        raise SettingsError(
            f"{source} has {len(token)} characters; expected at least {_TOKEN_LENGTH} random ones; {_ADVICE}"
        )
    if not _TOKEN.fullmatch(token):
        raise SettingsError(
            f"{source} holds a character that an Authorization header cannot carry; expected letters, digits and "
            f"-._~+/ only; {_ADVICE}"
        )
    return token


def find_token(file: Path | None, environment: Mapping[str, str]) -> str | None:
    """Find the bearer token: `file` first, then `LEARNMECH_TOKEN_FILE`, then `LEARNMECH_TOKEN`.

    A token is never an option's value: command lines can be read by every user of the machine.

    Raises:
        SettingsError: A file that cannot be read, a token that cannot be used, or two tokens from the environment.
    """
    named, literal = environment.get("LEARNMECH_TOKEN_FILE", ""), environment.get("LEARNMECH_TOKEN", "").strip()
    if file is None and named and literal:
        raise SettingsError("LEARNMECH_TOKEN and LEARNMECH_TOKEN_FILE are both set; expected one; unset the other")
    path = file or (Path(named) if named else None)
    if path is None:
        return check_token(literal, "LEARNMECH_TOKEN") if literal else None
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"token file {path} cannot be read ({error}); expected a text file; {_ADVICE}") from error
    return check_token(token, f"the token in {path}")
