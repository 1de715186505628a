"""`POST /v1/runs/{run_id}/measure`: from a reader to the trainer, which hears of it in the answer to its next batch."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from learnmech.collector.service.errors import ServiceError
from learnmech.collector.service.queries import RunId, answer
from learnmech.collector.service.schema import answers
from learnmech.collector.service.state import state_of
from learnmech.collector.store import Asked

router = APIRouter(tags=["ask"])


@router.post("/v1/runs/{run_id}/measure", responses=answers(Asked, "Asked; the trainer has yet to hear of it."))
def measure(request: Request, run_id: RunId) -> Response:
    """Ask a running run to measure once with each probe that has `on_demand()`, at the step it is at then.

    The trainer hears of it in the answer to its next batch or heartbeat, a few seconds from now. Asking again while a
    request waits, or within five seconds of the last one, changes nothing. A probe that was switched off since then
    stays so. 409 for a run that is not running, or has no such probe: nobody would answer. Each
    request is an event of the run, `measure_requested`.
    """  # noqa: DOC501 (this text is shown at /docs)
    state = state_of(request.app)
    found = state.store.run(run_id)
    if found.status != "running":
        raise ServiceError(
            409,
            f"run {found.name!r} is {found.status}, so nobody would measure",
            expected="a run that is running",
            hint="ask again once it goes on" if found.status == "stalled" else "nothing was asked of it",
        )
    if found.context.get("on_demand") is not True:
        raise ServiceError(
            409,
            f"no probe of run {found.name!r} measures on demand",
            expected="a run that says on_demand: true in its context",
            hint="give a probe the schedule on_demand(), as in Sharpness(on_demand()), and start the run again",
        )
    asked = state.store.ask(run_id)
    state.readiness.check_file()  # after the commit: what went into a deleted file reaches nobody
    state.changes.wake()
    return answer(asked)
