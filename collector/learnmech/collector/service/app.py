"""The application: every part put together, and nothing decided here."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.responses import HTMLResponse

from learnmech.collector.judging import Judge
from learnmech.collector.service import docs, errors, health, ingest, measuring, page, queries, scrape, stream
from learnmech.collector.service.auth import RequireLocalHost, RequireToken
from learnmech.collector.service.behind import behind
from learnmech.collector.service.changes import Changes
from learnmech.collector.service.metrics import CountRequests, Metrics
from learnmech.collector.service.readiness import Readiness
from learnmech.collector.service.schema import REFUSALS, components
from learnmech.collector.service.security import SecurityHeaders
from learnmech.collector.service.settings import Settings
from learnmech.collector.service.state import State, attach
from learnmech.collector.service.worker import JudgeWorker
from learnmech.collector.store import Store, UnknownRun

# SQLite takes one writer at a time; PostgreSQL gains from a few. More threads would only hold more connections.
_WRITERS = 4
_DESCRIPTION = """Takes measurements of training runs, judges them by the laws of learning mechanics, and shows both.

Every refusal has one form: {"error": what came, "expected": what was expected, "hint": what to do}."""


class Application(FastAPI):
    """FastAPI that knows the messages of `learnmech.wire`, which it does not decode itself."""

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document with the messages' schemas."""
        document = super().openapi()
        document.setdefault("components", {}).setdefault("schemas", {}).update(components())
        return document


def create_app(settings: Settings, store: Store) -> FastAPI:
    """Build the service over an open store. Whoever opened the store closes it, after the application has stopped.

    Args:
        settings: Address, token and limits.
        store: Where measurements go.
    """
    release = _version()
    metrics = Metrics(release)
    changes = Changes(store, poll=settings.poll, refresh=settings.refresh)

    def judged(rows: int, seconds: float) -> None:
        metrics.judged.inc(rows)
        metrics.judge_seconds.observe(seconds)
        if rows:
            changes.wake()

    worker = JudgeWorker(_judging(store), lambda: behind(store), judged=judged, failed=metrics.judge_failures.inc)
    metrics.judge_pending.set_function(lambda: worker.pending)
    metrics.streams.set_function(lambda: changes.watchers)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        changes.start()
        worker.start()
        try:
            yield
        finally:
            await changes.stop()
            await to_thread.run_sync(worker.stop, settings.shutdown)

    guard = Middleware(RequireToken, token=settings.token) if settings.token else Middleware(RequireLocalHost)
    app = Application(
        title="learnmech collector",
        version=release,
        description=_DESCRIPTION,
        responses=REFUSALS,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        middleware=[
            Middleware(SecurityHeaders),
            Middleware(CountRequests, metrics=metrics),
            Middleware(errors.CatchErrors),
            guard,
        ],
    )
    attach(
        app,
        State(
            settings, store, changes, worker, metrics, Readiness(store), CapacityLimiter(_WRITERS), CapacityLimiter(2)
        ),
    )
    errors.install(app)
    for router in (ingest.router, queries.router, measuring.router, stream.router, health.router, scrape.router):
        app.include_router(router)
    app.include_router(page.page_router(page.find()))

    @app.get("/docs", include_in_schema=False)
    def documentation() -> HTMLResponse:
        return HTMLResponse(docs.render(app.openapi()))

    return app


def _judging(store: Store) -> Callable[[str], int]:
    judge = Judge(store)

    def one(run: str) -> int:
        try:
            return judge.judge(run)
        except UnknownRun:  # deleted meanwhile
            return 0

    return one


def _version() -> str:
    try:
        return version("learnmech")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0+unknown"
