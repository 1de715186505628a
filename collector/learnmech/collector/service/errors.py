"""One shape for every refusal: what came, what was expected, what to do. Never a stack trace."""

import logging
import secrets
from collections.abc import Mapping
from http import HTTPStatus

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from learnmech.collector.store import InvalidBatch, StoreError, UnknownRun

logger = logging.getLogger("learnmech.collector.service")


class Problem(msgspec.Struct, frozen=True):
    """The body of every answer that is not a success.

    Attributes:
        error: What came, or what happened.
        expected: What was expected.
        hint: What to do about it.
    """

    error: str
    expected: str
    hint: str


class ServiceError(Exception):
    """A refusal on its way to the client."""

    def __init__(
        self, status: int, error: str, *, expected: str, hint: str, headers: Mapping[str, str] | None = None
    ) -> None:
        """Keep what `response` needs."""
        super().__init__(error)
        self.status = status
        self.problem = Problem(error, expected, hint)
        self.headers = dict(headers or {})

    def response(self) -> Response:
        """Return the answer to send."""
        return Response(
            msgspec.json.encode(self.problem), self.status, headers=self.headers, media_type="application/json"
        )


def unavailable(error: str, *, hint: str, retry_after: int = 5) -> ServiceError:
    """Return the refusal of a request that will work later: clients keep what they have and come back."""
    return ServiceError(
        503, error, expected="a service that can answer", hint=hint, headers={"Retry-After": str(retry_after)}
    )


def _from_http(error: HTTPException, request: Request) -> ServiceError:
    """Put the framework's own refusals (no such route, no such method) into our shape."""
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.NOT_FOUND:
        return ServiceError(
            404, f"nothing at {request.url.path}", expected="an address listed at /docs", hint="see /docs"
        )
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return ServiceError(
            405,
            f"{request.method} is not allowed at {request.url.path}",
            expected=headers.get("Allow", "another method"),
            hint="see /docs",
            headers=headers,
        )
    return ServiceError(error.status_code, str(error.detail), expected="see /docs", hint="see /docs", headers=headers)


def _from_validation(error: RequestValidationError) -> ServiceError:
    """Name each parameter of the address that could not be read."""
    found = [
        f"{'.'.join(str(part) for part in item['loc'][1:]) or 'request'}={item.get('input')!r:.100}: {item['msg']}"
        for item in error.errors()
    ]
    return ServiceError(422, "; ".join(found), expected="the parameters described at /docs", hint="correct the address")


def translate(error: Exception, request: Request) -> ServiceError:
    """Put an exception that has a meaning for the client into our shape; raise the others again."""
    match error:
        case ServiceError():
            return error
        case RequestValidationError():
            return _from_validation(error)
        case HTTPException():
            return _from_http(error, request)
        case UnknownRun():
            return ServiceError(
                404, str(error), expected="the id of a run that is stored", hint="GET /v1/runs lists them"
            )
        case InvalidBatch():
            return ServiceError(
                422,
                str(error),
                expected="a batch that the database can hold",
                hint="nothing was stored; correct the batch, sending it again as it is will not help",
            )
        case StoreError():
            logger.warning("the store did not answer %s %s: %s", request.method, request.url.path, error)
            return unavailable(str(error), hint="retry later; /readyz tells when the store is back")
    raise error


def install(app: FastAPI) -> None:
    """Make `app` answer every refusal in our shape."""

    async def answer(request: Request, error: Exception) -> Response:
        return translate(error, request).response()

    for kind in (ServiceError, RequestValidationError, HTTPException, StoreError):
        app.add_exception_handler(kind, answer)


class CatchErrors:
    """Outermost guard: an exception that nobody expected becomes a 500 with a reference into the log."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap `app`."""
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; answer for it if it breaks."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def note(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, note)
        except ClientDisconnect:
            # The body was cut off with the connection: there is nobody left to answer, and nothing was stored.
            logger.info("client went away during %s %s", scope["method"], scope["path"])
        except Exception:
            reference = secrets.token_hex(4)
            logger.exception("unexpected error %s in %s %s", reference, scope["method"], scope["path"])
            if started:
                raise
            error = ServiceError(
                500,
                f"unexpected error {reference} in the collector",
                expected="an answer",
                hint=f"look for {reference} in the collector's log and report it; retrying is safe",
            )
            await error.response()(scope, receive, send)
