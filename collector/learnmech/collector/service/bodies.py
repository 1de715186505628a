"""Request bodies within bounds: refused before they are read where possible, and never inflated past a limit."""

import asyncio
import zlib

from fastapi import Request

from learnmech.collector.service.errors import ServiceError
from learnmech.wire import Format

_FORMATS: dict[str, Format] = {
    "application/msgpack": "msgpack",
    "application/x-msgpack": "msgpack",
    "application/vnd.msgpack": "msgpack",
    "application/json": "json",
}
_GZIP_WINDOW = 16 + zlib.MAX_WBITS  # zlib's way to say: a gzip header and trailer, any window


def format_of(request: Request) -> Format:
    """Tell the body's format from its Content-Type.

    Raises:
        ServiceError: 415 for any other type. A browser cannot send the two we take across origins without asking first,
            so this is also what keeps foreign web pages from posting to a collector on localhost.
    """
    sent = request.headers.get("content-type", "")
    found = _FORMATS.get(sent.partition(";")[0].strip().lower())
    if found is None:
        raise ServiceError(
            415,
            f"Content-Type {sent!r}" if sent else "no Content-Type",
            expected="application/msgpack or application/json",
            hint="send a Batch of learnmech.wire with its Content-Type",
        )
    return found


async def read_body(request: Request, *, limit: int, patience: float) -> bytes:
    """Read a whole request body as it was sent.

    Args:
        request: The request, of which nothing was read yet.
        limit: Most bytes.
        patience: Most seconds until the whole body is here.

    Raises:
        ServiceError: 413 for too much (before reading where the length is declared), 408 for a sender that is too slow.
    """  # noqa: DOC501 (the helpers raised here make a ServiceError)
    declared = request.headers.get("content-length")
    if declared is not None and declared.isdecimal() and int(declared) > limit:
        raise _too_large(f"{declared} bytes", limit)
    chunks: list[bytes] = []
    received = 0
    try:
        async with asyncio.timeout(patience):
            async for chunk in request.stream():
                received += len(chunk)
                if received > limit:
                    raise _too_large(f"more than {limit} bytes", limit)
                chunks.append(chunk)
    except TimeoutError as error:
        raise ServiceError(
            408,
            f"{received} bytes of the body after {patience:g} s",
            expected="the whole body",
            hint="send smaller batches over a slow line; retrying is safe",
            headers={"Connection": "close"},
        ) from error
    return b"".join(chunks)


def inflate(body: bytes, limit: int) -> bytes:
    """Decompress one gzip member into at most `limit` bytes.

    Memory stays below `limit` whatever the stream claims: zlib is never asked for more. Further members are refused:
    no client of ours sends any, and four million bytes of empty ones would keep a core busy for minutes.

    Raises:
        ServiceError: 413 when it inflates further, 400 when it is cut off or not gzip.
    """  # noqa: DOC501, DOC502 (the helpers raised here make a ServiceError)
    stream = zlib.decompressobj(_GZIP_WINDOW)
    try:
        inflated = stream.decompress(body, limit + 1)  # one more than allowed tells "too much" from "just enough"
    except zlib.error as error:
        raise _not_gzip(str(error)) from error
    if len(inflated) > limit:
        raise _too_large(f"a body that inflates to more than {limit} bytes", limit)
    if not stream.eof:
        raise _not_gzip("it ends too early")
    if stream.unused_data:
        raise _not_gzip(f"{len(stream.unused_data)} bytes follow its end")
    return inflated


def is_gzip(request: Request) -> bool:
    """Tell from Content-Encoding whether the body is compressed.

    Raises:
        ServiceError: 415 for any other encoding.
    """
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding in {"", "identity"}:
        return False
    if encoding in {"gzip", "x-gzip"}:
        return True
    raise ServiceError(
        415,
        f"Content-Encoding {encoding!r}",
        expected="gzip, or none",
        hint="send the body plain or compressed with gzip",
        headers={"Accept-Encoding": "gzip"},
    )


def _too_large(found: str, limit: int) -> ServiceError:
    return ServiceError(
        413,
        found,
        expected=f"at most {limit} bytes",
        hint="split the batch and send its frames in several",
    )


def _not_gzip(why: str) -> ServiceError:
    return ServiceError(
        400,
        f"a body that is not a whole gzip stream: {why}",
        expected="what Content-Encoding says: gzip",
        hint="was the body cut off, or sent without compression?",
    )
