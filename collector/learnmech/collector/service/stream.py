"""`GET /v1/stream`: Server-Sent Events that say which runs changed, so that a page fetches only those."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated

import msgspec
from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response, StreamingResponse

from learnmech.collector.service.changes import Change
from learnmech.collector.service.errors import unavailable
from learnmech.collector.service.state import state_of

router = APIRouter(tags=["stream"])


@router.get("/v1/stream", response_class=StreamingResponse)
async def stream(
    request: Request,
    run: Annotated[str | None, Query(description="Only this run's changes.", max_length=64)] = None,
    last_event_id: Annotated[
        str | None, Header(description="The revision seen last; older changes are left out.")
    ] = None,
) -> Response:
    """Stream the runs that change, as Server-Sent Events.

    Each event is named `runs`; its id is the store's revision and its data
    `{"revision": n, "runs": [{"id", "revision", "status", "last_step"}]}`. The first event lists every run, or with
    `Last-Event-ID` those that changed since. A comment every 15 s keeps the line open. Browsers' `EventSource` cannot
    send a token: with one, read the stream through `fetch`.
    """  # noqa: DOC501 (this text is shown at /docs)
    state = state_of(request.app)
    if state.changes.watchers >= state.settings.stream_limit:
        raise unavailable(
            f"{state.settings.stream_limit} event streams are open already",
            hint="close a page that watches, or poll /v1/runs",
            retry_after=30,
        )
    await state.changes.look()  # a database that is away is a 503 now, not a stream that breaks off
    after = int(last_event_id) if last_event_id and last_event_id.isascii() and last_event_id.isdecimal() else None
    return StreamingResponse(
        _events(state.changes.follow(run=run, after=after, keep_alive=state.settings.keep_alive)),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},  # proxies are to pass each event on at once
    )


async def _events(changes: AsyncGenerator[Change | None]) -> AsyncIterator[bytes]:
    yield b"retry: 1000\n\n"
    async with contextlib.aclosing(changes):
        async for change in changes:
            if change is None:
                yield b": keep-alive\n\n"
            else:
                yield b"event: runs\nid: %d\ndata: %b\n\n" % (change.revision, msgspec.json.encode(change))
