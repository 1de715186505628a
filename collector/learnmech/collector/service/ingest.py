"""`POST /v1/measurements`: batches in, an acknowledgement out once they are committed."""

import logging
import re
import time

import msgspec
from anyio import to_thread
from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from learnmech import wire
from learnmech.collector.service.bodies import format_of, inflate, is_gzip, read_body
from learnmech.collector.service.errors import ServiceError, unavailable
from learnmech.collector.service.schema import answers, body
from learnmech.collector.service.state import State, state_of
from learnmech.collector.store import InvalidBatch, StoreError

logger = logging.getLogger("learnmech.collector.service")
router = APIRouter(tags=["ingest"])

# What Python's json.dumps writes, and JSON has no word for: the likeliest mistake of a client that is not ours.
_NOT_JSON = re.compile(rb"[:\[,]\s*-?(?:NaN|Infinity)\b")
_NO_NAN = 'JSON knows no NaN and no Infinity: write "nan", "inf" or "-inf" in quotes, or send msgpack; '


@router.post(
    "/v1/measurements",
    openapi_extra={"requestBody": body(wire.Batch)},
    responses=answers(wire.Ack, "Committed."),
)
async def measurements(request: Request) -> Response:
    """Store one batch of one writer and acknowledge it after the commit.

    Delivering a batch again is harmless: what is there already counts as duplicates. Single measurements that cannot be
    taken (an unknown observable, a negative error bar) are listed in `rejected` and the rest is stored; a batch that is
    not one is refused whole with a 4xx and will never be taken. 408, 429 and 503 mean: come back, with the same batch.
    """  # noqa: DOC501 (this text is shown at /docs)
    state = state_of(request.app)
    kind, gzipped = format_of(request), is_gzip(request)
    if state.metrics.batches_in_flight >= state.settings.ingest_queue:
        state.metrics.batches.labels("deferred").inc()
        raise unavailable(
            f"{state.settings.ingest_queue} batches wait to be stored already",
            hint="retry after the seconds in Retry-After; nothing of this batch was read",
            retry_after=1,
        )
    with state.metrics.ingesting():
        try:
            settings = state.settings
            data = await read_body(request, limit=settings.body_limit, patience=settings.body_timeout)
            batch, ack = await to_thread.run_sync(_take, state, data, kind, gzipped, limiter=state.writers)
        except ServiceError as refusal:
            state.metrics.batches.labels("deferred" if refusal.status in {408, 503} else "refused").inc()
            logger.info("refused a batch from %s: %s", request.client.host if request.client else "?", refusal)
            raise
        except InvalidBatch:
            state.metrics.batches.labels("refused").inc()
            raise
        except (ClientDisconnect, StoreError):
            state.metrics.batches.labels("deferred").inc()
            raise
    state.metrics.count(batch, ack)
    if ack.accepted or any(frame.events for frame in batch.frames):
        state.judge.notify(batch.run.id)
    state.changes.wake()
    return Response(msgspec.json.encode(ack), media_type="application/json")


def _take(state: State, data: bytes, format: wire.Format, gzipped: bool) -> tuple[wire.Batch, wire.Ack]:
    """Inflate, decode and store, on a thread of its own: none of it holds up the event loop."""
    began = time.perf_counter()
    if gzipped:
        data = inflate(data, state.settings.inflated_limit)
    state.metrics.bytes.inc(len(data))
    try:
        batch = wire.decode(data, wire.Batch, format)
    except wire.WireError as error:
        raise ServiceError(
            400,
            str(error),
            expected=f"a whole Batch of learnmech.wire, version {wire.VERSION}, as {format}",
            hint=(_NO_NAN if format == "json" and _NOT_JSON.search(data) else "")
            + "nothing was stored; correct the batch (/docs has its form), sending it again as it is will not help",
        ) from error
    count = sum(len(frame.measurements) for frame in batch.frames)
    if count > state.settings.measurement_limit:
        raise ServiceError(
            413,
            f"a batch of {count} measurements",
            expected=f"at most {state.settings.measurement_limit}",
            hint="split the batch and send its frames in several",
        )
    ack = state.store.ingest(batch, received=time.time())
    state.readiness.check_file()  # after the commit: what went into a deleted file must not be acknowledged
    state.metrics.ingest_seconds.observe(time.perf_counter() - began)
    return batch, ack
