"""`GET /metrics`: the service's own health, for Prometheus."""

import logging
from collections import Counter

from fastapi import APIRouter, Request
from starlette.responses import Response

from learnmech.collector.service.metrics import CONTENT_TYPE
from learnmech.collector.service.state import State, state_of
from learnmech.collector.store import StoreError

logger = logging.getLogger("learnmech.collector.service")
router = APIRouter(tags=["health"])

_STATUSES = ("running", "finished", "failed", "stalled")


@router.get("/metrics", response_class=Response)
def metrics(request: Request) -> Response:
    """Return the service's counters in Prometheus' text format; training curves are in SQL, not here."""
    state = state_of(request.app)
    _look(state)
    return Response(state.metrics.render(), media_type=CONTENT_TYPE)


def _look(state: State) -> None:
    """Read the gauges that live in the database. A scrape succeeds without them: that is when it matters most."""
    try:
        state.readiness.check()
        counts = Counter(run.status for run in state.store.runs())
    except StoreError as error:
        logger.warning("scraped without the store: %s", error)
        state.metrics.ready.set(0)
        return
    state.metrics.ready.set(1)
    for status in _STATUSES:
        state.metrics.runs.labels(status).set(counts[status])
