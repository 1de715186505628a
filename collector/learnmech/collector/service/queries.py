"""What the page reads: runs, curves, residuals, events, laws and the vocabulary; never more than asked for."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from learnmech import laws, observables
from learnmech.collector.service.errors import ServiceError
from learnmech.collector.service.schema import Events, RunDetail, Runs, answers
from learnmech.collector.service.state import state_of

router = APIRouter(tags=["read"])

# Far beyond what a screen can show, and 1 MB of JSON; whoever wants everything reads the SQL views.
_MOST_POINTS = 20_000
# As many as an address of 8 kB holds, what proxies take by default, at 80 characters each.
_MOST_CURVES = 100

RunId = Annotated[str, Path(description="The run's id.", pattern="^[0-9a-f]{32}$")]
Scope = Annotated[str, Query(description="Empty for the whole model, else a parameter's name, a module's or a rank.")]
Axis = Annotated[
    Literal["step", "samples", "tokens", "time"], Query(description="What `x` counts; time in unix seconds.")
]
AfterStep = Annotated[
    int, Query(description="Only later steps, for a page that has the earlier ones.", ge=-1, le=2**63 - 1)
]
Points = Annotated[
    int, Query(description="Most points; more are put into buckets with minimum and maximum.", ge=2, le=_MOST_POINTS)
]


@router.get("/v1/runs", responses=answers(Runs))
def runs(request: Request) -> Response:
    """List every run, with its status and how far it is."""
    return answer(Runs(state_of(request.app).store.runs()))


@router.get("/v1/runs/{run_id}", responses=answers(RunDetail))
def run(request: Request, run_id: RunId) -> Response:
    """Describe one run: what `/v1/runs` says of it, what every law says of it, and which series it has."""
    store = state_of(request.app).store
    row = msgspec.structs.asdict(store.run(run_id))
    return answer(RunDetail(**row, laws=store.laws(run_id), series=store.series(run_id)))


@router.get("/v1/runs/{run_id}/observations")
def observations(
    request: Request,
    run_id: RunId,
    observable: Annotated[str, Query(description="A name of `/v1/observables`.")],
    scope: Scope = "",
    x: Axis = "step",
    after_step: AfterStep = -1,
    points: Points = 2000,
) -> Response:
    """Return one curve as columns: `step, x, value, lower, upper, stderr, status`; what is not finite is null."""
    store = state_of(request.app).store
    found = store.observations(run_id, observable, scope, after_step=after_step, points=points, x=x)
    if not found["step"]:  # what an older vocabulary had is stored, and shown
        _known(observables.get, observable, "observable", "/v1/observables")
    return answer(found)


@router.get("/v1/runs/{run_id}/curves")
def curves(
    request: Request,
    run_id: RunId,
    observable: Annotated[
        list[str], Query(description="A name of `/v1/observables`; repeat it.", min_length=1, max_length=_MOST_CURVES)
    ],
    scope: Annotated[list[str], Query(description="The scope of each, in the same order.", max_length=_MOST_CURVES)],
    after_step: Annotated[
        list[int] | None, Query(description="Only later steps of each, in the same order; all when left out.")
    ] = None,
    x: Axis = "step",
    points: Points = 200,
) -> Response:
    """Return several curves of a run at once.

    `{"curves": [...]}` in the order asked for, each with its `observable`, its `scope`, and the columns of
    `/observations`. At most 20000 points together.
    """  # noqa: DOC501 (the helper raised here makes a ServiceError)
    after = [-1] * len(observable) if after_step is None else after_step
    if not len(observable) == len(scope) == len(after) or any(not -1 <= step < 2**63 for step in after):
        raise ServiceError(
            422,
            f"{len(observable)} observable, {len(scope)} scope, {len(after)} after_step",
            expected="as many of each, in the same order, and steps from -1 on",
            hint="repeat scope= with nothing behind it for the whole model",
        )
    if len(observable) * points > _MOST_POINTS:
        raise ServiceError(
            422,
            f"{len(observable)} curves of {points} points",
            expected=f"at most {_MOST_POINTS} points together",
            hint="ask for fewer points=, or in several requests",
        )
    store = state_of(request.app).store
    found = []
    for name, part, step in zip(observable, scope, after, strict=True):
        columns = store.observations(run_id, name, part, after_step=step, points=points, x=x)
        if not columns["step"] and step < 0:
            _known(observables.get, name, "observable", "/v1/observables")
        found.append({"observable": name, "scope": part, **columns})
    return answer({"curves": found})


@router.get("/v1/runs/{run_id}/residuals")
def residuals(
    request: Request,
    run_id: RunId,
    law: Annotated[str, Query(description="A name of `/v1/laws`.")],
    scope: Scope = "",
    x: Axis = "step",
    after_step: AfterStep = -1,
    points: Points = 2000,
) -> Response:
    """Return measured against predicted as columns.

    `step, x, time, measured, measured_stderr, predicted, lower, upper, ratio, verdict, reason`.
    """
    found = state_of(request.app).store.residuals(run_id, law, scope, after_step=after_step, points=points, x=x)
    if not found["step"]:
        _known(laws.get, law, "law", "/v1/laws")
    return answer(found)


@router.get("/v1/runs/{run_id}/events", responses=answers(Events))
def events(
    request: Request,
    run_id: RunId,
    after: Annotated[int, Query(description="Only events with a larger id.", ge=0, le=2**31 - 1)] = 0,
) -> Response:
    """List what happened in the run, at most 1000 at once: starts, ends, disabled probes, gaps."""
    return answer(Events(state_of(request.app).store.events(run_id, after)))


@router.get("/v1/laws")
def all_laws() -> Response:
    """List the laws that runs are judged by."""
    return answer(
        [
            {
                "name": law.name,
                "title": law.title,
                "statement": law.statement,
                "reference": law.reference,
                "measures": law.measures,
                "needs": law.needs,
                "tolerance": {"lower": law.band.lower, "upper": law.band.upper, "origin": law.band.origin},
                "one_sided": law.one_sided,
                "advice": law.advice,
            }
            for law in laws.catalogue()
        ]
    )


@router.get("/v1/observables")
def vocabulary() -> Response:
    """List every observable with its symbol, unit and definition."""
    return answer(observables.catalogue())


def _known(get: Callable[[str], object], name: str, kind: str, listing: str) -> None:
    """Refuse a name that nobody declared: an empty curve would pass for a quantity that was not measured."""
    try:
        get(name)
    except (observables.UnknownObservable, laws.UnknownLaw) as error:
        raise ServiceError(
            404, str(error), expected=f"a name of {listing}", hint=f"correct {kind}= in the address"
        ) from error


def answer(content: Any) -> Response:
    """Return `content` as JSON: dataclasses and enumerations as they are, what is not finite as null."""
    return Response(msgspec.json.encode(content), media_type="application/json", headers={"Cache-Control": "no-store"})
