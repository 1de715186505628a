"""The service's own health for Prometheus: counters of what it did, never training curves.

A run id is an unbounded label, so none of these carries one: curves are read from SQL. Names follow Prometheus'
conventions (base units, `_total` on counters).
"""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.exposition import generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from learnmech.wire import Ack, Batch

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# From a warm single-row commit on SQLite (1 ms) to a client's own timeout (10 s).
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """The metrics of one service, in a registry of their own: two services in one process do not collide."""

    def __init__(self, version: str) -> None:
        """Declare every metric, so that each is scraped as 0 before it first happens."""
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        Info("learnmech_build", "Version of the collector.", registry=registry).info({"version": version})
        self.requests = Counter(
            "learnmech_http_requests", "Answered requests.", ("method", "route", "status"), registry=registry
        )
        self.batches = Counter(
            "learnmech_ingest_batches",
            "Batches by outcome: stored (something new), duplicate (nothing new), heartbeat, refused (never to be "
            "taken), deferred (the client is to come back).",
            ("outcome",),
            registry=registry,
        )
        for outcome in ("stored", "duplicate", "heartbeat", "refused", "deferred"):
            self.batches.labels(outcome)
        self.measurements = Counter(
            "learnmech_ingest_measurements",
            "Measurements by outcome: accepted, duplicate, rejected (unknown name or impossible value).",
            ("outcome",),
            registry=registry,
        )
        for outcome in ("accepted", "duplicate", "rejected"):
            self.measurements.labels(outcome)
        self.bytes = Counter("learnmech_ingest_bytes", "Bytes of batches after decompression.", registry=registry)
        self.ingest_seconds = Histogram(
            "learnmech_ingest_seconds", "Decoding and storing one batch.", buckets=_SECONDS, registry=registry
        )
        self.batches_in_flight = 0
        in_flight = Gauge("learnmech_ingest_in_flight", "Batches being read or stored.", registry=registry)
        in_flight.set_function(lambda: self.batches_in_flight)
        self.last_ingest = Gauge(
            "learnmech_last_ingest_timestamp_seconds", "When the last batch was stored.", registry=registry
        )
        self.streams = Gauge("learnmech_streams", "Open event streams.", registry=registry)
        self.judged = Counter("learnmech_judged_rows", "Residuals written by the judge.", registry=registry)
        self.judge_failures = Counter(
            "learnmech_judge_failures", "Attempts to judge a run that failed; each is tried again.", registry=registry
        )
        self.judge_seconds = Histogram(
            "learnmech_judge_seconds", "Judging what is new in one run.", buckets=_SECONDS, registry=registry
        )
        self.judge_pending = Gauge("learnmech_judge_pending_runs", "Runs that wait to be judged.", registry=registry)
        self.runs = Gauge("learnmech_runs", "Runs by status.", ("status",), registry=registry)
        self.ready = Gauge(
            "learnmech_ready", "1 when the database answers and its schema is current.", registry=registry
        )

    @contextmanager
    def ingesting(self) -> Iterator[None]:
        """Count one batch as under way. From the event loop's thread only."""
        self.batches_in_flight += 1
        try:
            yield
        finally:
            self.batches_in_flight -= 1

    def count(self, batch: Batch, ack: Ack) -> None:
        """Count a stored batch."""
        outcome = "duplicate" if ack.duplicates and not ack.accepted else "stored"
        self.batches.labels("heartbeat" if batch.heartbeat else outcome).inc()
        self.measurements.labels("accepted").inc(ack.accepted)
        self.measurements.labels("duplicate").inc(ack.duplicates)
        self.measurements.labels("rejected").inc(len(ack.rejected))
        self.last_ingest.set(ack.server_time)

    def render(self) -> bytes:
        """Return the exposition in Prometheus' text format."""
        return generate_latest(self.registry)


class CountRequests:
    """Count every answer by method, route template and status; what matches no route counts as `unmatched`."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        """Count for `app` into `metrics`."""
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and count its answer when it starts."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def count(message: Message) -> None:
            if message["type"] == "http.response.start":
                method = scope["method"] if scope["method"] in _METHODS else "OTHER"
                route = getattr(scope.get("route"), "path", "unmatched")
                self.metrics.requests.labels(method, route, str(message["status"])).inc()
            await send(message)

        await self.app(scope, receive, count)
