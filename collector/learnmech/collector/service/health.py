"""`/healthz`: the process lives. `/readyz`: it can do its work, which is asked of the database and not assumed."""

import logging

import anyio
import msgspec
from anyio import to_thread
from fastapi import APIRouter, Request
from starlette.responses import Response

from learnmech.collector.service.errors import unavailable
from learnmech.collector.service.state import state_of
from learnmech.collector.store import StoreError

logger = logging.getLogger("learnmech.collector.service")
router = APIRouter(tags=["health"])

# Orchestrators give a probe one to a few seconds; a database that takes longer is not ready.
_PATIENCE = 2.0


@router.get("/healthz")
async def healthz(request: Request) -> Response:
    """Say that the process lives and its event loop turns. The database is not asked: a restart would not help it."""
    return _ok({"status": "ok", "version": request.app.version})


@router.get("/readyz")
async def readyz(request: Request) -> Response:
    """Say whether batches can be stored: the database answers and has this version's schema; else 503 with the reason.

    Restarting the process would not help; sending it no traffic until it is ready does.
    """  # noqa: DOC501 (this text is shown at /docs)
    state = state_of(request.app)
    try:
        with anyio.fail_after(_PATIENCE):
            # Abandoned when it hangs, and at most two at once, so that probing a hung database piles up nothing.
            await to_thread.run_sync(state.readiness.check, abandon_on_cancel=True, limiter=state.probes)
    except TimeoutError as error:
        raise unavailable(
            f"the database did not answer within {_PATIENCE:g} s", hint="is it overloaded, or its host unreachable?"
        ) from error
    except StoreError as error:
        logger.warning("not ready: %s", error)
        # Anybody may ask; where the database lives is for those with the token, and for the log.
        reason = "the database does not answer, or is not of this version" if state.settings.token else str(error)
        raise unavailable(reason, hint="the collector's log says more; clients keep what they have") from error
    return _ok({"status": "ready"})


def _ok(content: dict[str, str]) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json", headers={"Cache-Control": "no-store"})
