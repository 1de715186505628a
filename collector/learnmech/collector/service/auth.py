"""Who may ask: one bearer token, and without one only programs on this machine."""

import hmac
from collections.abc import Iterable
from hashlib import sha256

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from learnmech.collector.service.errors import ServiceError
from learnmech.collector.service.settings import is_loopback

# Open without a token: liveness for orchestrators, and files that are the same in every installation.
PUBLIC = frozenset({"/", "/healthz", "/readyz", "/docs", "/favicon.ico"})
PUBLIC_FOLDERS = ("/page/",)


class RequireToken:
    """Refuse every request without the token, except for what is public. A new route is protected by default."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        """Protect `app` with `token`."""
        self.app = app
        self._digest = sha256(token.encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401, before any byte of the body is read, unless the token is right."""
        if scope["type"] != "http" or is_public(scope["path"]):
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(Headers(scope=scope).getlist("authorization"))
        if refusal is None:
            await self.app(scope, receive, send)
        else:
            await refusal.response()(scope, receive, send)

    def _refusal(self, authorization: Iterable[str]) -> ServiceError | None:
        sent = list(authorization)
        if len(sent) != 1:
            return _unauthorized("no token" if not sent else "several Authorization headers", "")
        scheme, _, token = sent[0].partition(" ")
        if scheme.lower() != "bearer":
            return _unauthorized("an Authorization header that is not of the scheme Bearer", "")
        # Digests have one length, so that the comparison tells nothing about the token's.
        if not hmac.compare_digest(sha256(token.strip().encode("latin-1", "replace")).digest(), self._digest):
            return _unauthorized("a wrong token", ', error="invalid_token"')
        return None


class RequireLocalHost:
    """Without a token, answer only requests that were addressed to this machine by a local name.

    A web page can have its own host name resolve to 127.0.0.1 and then read a local service as its own origin (DNS
    rebinding); its requests still carry that name in their Host header.
    """

    def __init__(self, app: ASGIApp) -> None:
        """Guard `app`."""
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403 when the Host header names anything but a loopback address."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            host, origin = headers.get("host", ""), headers.get("origin")
            if scope["method"] not in {"GET", "HEAD"} and origin is not None and origin.partition("://")[2] != host:
                refusal = ServiceError(
                    403,
                    f"a request that the page {origin!r} sent to a collector without a token",
                    expected="this collector's own page, or a program",
                    hint="open the collector's own page",
                )
                await refusal.response()(scope, receive, send)
                return
            if not is_loopback(host_name(host)):
                refusal = ServiceError(
                    403,
                    f"a request for host {host!r} to a collector without a token",
                    expected="localhost or a loopback address",
                    hint="open the collector as http://127.0.0.1:PORT, or start it with --token-file behind a proxy",
                )
                await refusal.response()(scope, receive, send)
                return
        await self.app(scope, receive, send)


def is_public(path: str) -> bool:
    """Whether `path` may be read without a token."""
    return path in PUBLIC or path.startswith(PUBLIC_FOLDERS)


def host_name(header: str) -> str:
    """Return a Host header without its port: `[::1]:8765` is `::1`."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]


def _unauthorized(found: str, detail: str) -> ServiceError:
    return ServiceError(
        401,
        found,
        expected="Authorization: Bearer TOKEN",
        hint="the token is the one that the collector was started with (--token-file or LEARNMECH_TOKEN); "
        "trainers take it from LEARNMECH_TOKEN, the page asks for it",
        headers={"WWW-Authenticate": f'Bearer realm="learnmech"{detail}'},
    )
