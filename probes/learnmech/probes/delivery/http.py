"""The sink `http(s)://`: one batch is one POST, answered after the commit."""

import gzip
import os
import time
import urllib.request
from collections.abc import Mapping
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec
import urllib3

from learnmech.sinks import Refused, SinkError, Unauthorized, Unavailable, identity
from learnmech.wire import Ack, Batch, WireError, decode, encode

PATH = "/v1/measurements"
TOKEN = "LEARNMECH_TOKEN"  # noqa: S105 (the variable's name, not a token)
"""Environment variable with the token, for those who keep it out of the URL."""

_CONNECT = 5.0
_PATIENT, _MOST_PATIENT = 30.0, 120.0
"""Seconds that an answer may take: a commit on a busy database takes seconds, and a dead network should not take
minutes. Twice as long after each answer that did not come: what takes longer for good would never be acknowledged.
At most so long that nobody takes the writer of a spool for dead, who does nothing else meanwhile (`lock.STALE`)."""

_COMPRESS = 1024  # bytes from which a body shrinks by more than a packet

_UNDERSTOOD = frozenset({400, 409, 415, 422})
"""Answers that say: understood, and never. Anything else may be a proxy's, a restart's or a wrong address's."""


class HttpSink:
    """Delivers to a collector.

    Attributes:
        endpoint: Where the batches go; no credentials in it.
    """

    def __init__(self, url: str) -> None:
        """Read the address; the connection is opened with the first batch.

        Args:
            url: `http(s)://[TOKEN@]host[:port][/prefix]`. Without a token there the environment variable
                `LEARNMECH_TOKEN` is used.

        Raises:
            SinkError: There is no host, or a token is where it would end up in logs.
        """
        self.endpoint = identity(url) + PATH
        parts = urlsplit(url)
        if not parts.hostname:
            raise SinkError(f"sink {identity(url)!r} names no host; expected for instance http://127.0.0.1:8765")
        if any(key in {"token", "access_token", "api_key"} for key, _ in parse_qsl(parts.query)):
            raise SinkError(
                f"the sink {identity(url)} carries a token in its query, where every proxy logs it; write "
                f"{parts.scheme}://TOKEN@{parts.hostname} or set {TOKEN}"
            )
        token = unquote(parts.password or parts.username or "") or os.environ.get(TOKEN, "")
        if not token.isascii() or any(character.isspace() for character in token):
            raise SinkError(f"the token for {identity(url)} has a space or a character that no header can carry")
        self._headers = {
            "Content-Type": "application/msgpack",
            "Accept": "application/msgpack, application/json",
            "User-Agent": "learnmech",
        }
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._pool = _pool(parts.scheme, parts.hostname)
        # Learned from a 413: bodies larger than this are cut before they are sent.
        self._largest: int | None = None
        self._patience = _PATIENT

    def deliver(self, batch: Batch) -> Ack:
        """Send a batch, in pieces where the collector wants smaller ones.

        Raises:
            Unavailable: No answer, an overloaded or a broken server, or something that is no collector.
            Unauthorized: The token is missing, wrong, or may not write.
            Refused: The collector understood the batch and will never take it.
        """  # noqa: DOC502 (raised below)
        body = encode(batch)
        if self._largest is None or len(body) <= self._largest or len(batch.frames) < 2:
            answer = self._post(body)
            if answer.status != 413:
                return _ack(answer, self.endpoint)
            self._largest = len(body) // 2
            if len(batch.frames) < 2:
                raise Refused(f"one frame of {len(body)} bytes is more than {self.endpoint} takes")
        middle = len(batch.frames) // 2
        # In order; if the second piece fails, the whole batch comes again and the first piece is a duplicate.
        first = self.deliver(msgspec.structs.replace(batch, frames=batch.frames[:middle]))
        second = self.deliver(msgspec.structs.replace(batch, frames=batch.frames[middle:]))
        return Ack(
            accepted=first.accepted + second.accepted,
            duplicates=first.duplicates + second.duplicates,
            rejected=first.rejected + second.rejected,
            last_sequence=second.last_sequence,
            server_time=second.server_time,
            asked=max(first.asked, second.asked),
        )

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()

    def _post(self, body: bytes) -> urllib3.BaseHTTPResponse:
        headers = self._headers
        if len(body) >= _COMPRESS:
            # Level 1: three quarters of the gain for a fifth of the time, and zlib lets the training run meanwhile.
            body, headers = gzip.compress(body, 1, mtime=0), {**headers, "Content-Encoding": "gzip"}
        patience = urllib3.Timeout(connect=_CONNECT, read=self._patience)
        began = time.monotonic()
        try:
            answer = self._pool.request(
                "POST", self.endpoint, body=body, headers=headers, timeout=patience, retries=False, redirect=False
            )
        except urllib3.exceptions.ReadTimeoutError as error:
            waited, self._patience = self._patience, min(2 * self._patience, _MOST_PATIENT)
            raise Unavailable(f"no answer from {self.endpoint} (none within {waited:g} s)") from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unavailable(f"no answer from {self.endpoint} ({_why(error)})") from error
        self._patience = min(max(_PATIENT, 2 * (time.monotonic() - began)), _MOST_PATIENT)
        return answer


def _ack(answer: urllib3.BaseHTTPResponse, endpoint: str) -> Ack:
    """Read an answer, or raise what it means.

    Raises:
        Unauthorized: 401 or 403.
        Refused: A collector's own answer that the batch is no good.
        Unavailable: Everything else.
    """
    if answer.status == 200:
        try:
            return decode(
                answer.data, Ack, "msgpack" if "msgpack" in answer.headers.get("Content-Type", "") else "json"
            )
        except WireError as error:
            raise Unavailable(f"{endpoint} answered 200 with something that is no acknowledgement: {error}") from error
    sentence = _sentence(answer.data)
    retry_after = _seconds(answer.headers)
    if answer.status in {401, 403}:
        raise Unauthorized(
            f"{endpoint} does not accept our token ({answer.status}: {sentence or 'no reason given'}); set {TOKEN}, or "
            "put a token with the right to ingest into the sink's URL",
            retry_after,
        )
    if answer.status in _UNDERSTOOD and sentence:
        raise Refused(sentence)
    if answer.status in {301, 302, 303, 307, 308}:
        # Not followed: the token would go wherever the answer points.
        raise Unavailable(f"{endpoint} sends us on to {answer.headers.get('Location')}; use that address as the sink")
    hint = "" if sentence else "; is this the address of a learnmech collector?" if answer.status < 500 else ""
    raise Unavailable(f"{endpoint} answered {answer.status} {sentence}{hint}".strip(), retry_after)


def _sentence(body: bytes) -> str:
    """Return what a collector says in its error, '' when the answer is not a collector's."""
    try:
        error = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
    if not isinstance(error, dict) or not isinstance(error.get("error"), str):
        return ""
    parts = [error["error"], *(f"{key}: {error[key]}" for key in ("expected", "hint") if error.get(key))]
    return "; ".join(parts)[:1000]


def _seconds(headers: Mapping[str, str]) -> float | None:
    """Return Retry-After where it is a number; a date needs two clocks that agree."""
    try:
        return max(0.0, float(headers.get("Retry-After", "")))
    except ValueError:
        return None


def _why(error: Exception) -> str:
    if isinstance(error, urllib3.exceptions.NameResolutionError):
        return "no such host"
    if isinstance(error, urllib3.exceptions.NewConnectionError):
        return "connection refused or no route"
    if isinstance(error, urllib3.exceptions.ConnectTimeoutError):
        return f"no connection within {_CONNECT:g} s"
    return f"{type(error).__name__}: {error}"


def _pool(scheme: str, host: str) -> urllib3.PoolManager:
    """Return connections, through the proxy that the environment names, as clusters need it."""
    proxy = urllib.request.getproxies().get(scheme)
    if proxy and not urllib.request.proxy_bypass(host):
        return urllib3.ProxyManager(proxy, num_pools=1, maxsize=1)
    return urllib3.PoolManager(num_pools=1, maxsize=1)
