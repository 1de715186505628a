"""A running collector on a free port, over the real store, and batches to send to it."""

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx
import pytest

from learnmech import wire
from learnmech.collector.service.server import Service
from learnmech.collector.service.settings import Settings
from learnmech.collector.store import Store

TOKEN = "a-token-of-thirty-two-characters"


@dataclass
class Running:
    """A collector that answers, what it stores into, and a client of it."""

    service: Service
    store: Store
    http: httpx.Client

    def post(self, batch: wire.Batch | bytes, format: str = "msgpack", **headers: str) -> httpx.Response:
        """Send a batch, or bytes that should have been one."""
        body = batch if isinstance(batch, bytes) else wire.encode(batch, format)
        return self.http.post(
            "/v1/measurements", content=body, headers={"Content-Type": f"application/{format}", **headers}
        )

    def values(self, run: str, observable: str = "loss", scope: str = "") -> list[float | None]:
        """What is stored of one series, read back over HTTP."""
        answer = self.http.get(
            f"/v1/runs/{run}/observations", params={"observable": observable, "scope": scope, "points": 20000}
        )
        return answer.raise_for_status().json()["value"]


@pytest.fixture
def store(tmp_path) -> Iterator[Store]:
    """An empty store on SQLite."""
    opened = Store.open(f"sqlite:///{tmp_path / 'service.db'}")
    yield opened
    opened.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Running]]:
    """Start a collector over a store; stop it after the test."""
    with contextlib.ExitStack() as stack:

        def start(store: Store, **settings: object) -> Running:
            return _start(stack, store, settings)

        yield start


@pytest.fixture
def running(store, serve) -> Running:
    """A collector with the settings that `learnmech collect` has when nothing is said."""
    return serve(store)


@pytest.fixture(scope="module")
def serve_module(tmp_path_factory) -> Iterator[Callable[..., Running]]:
    """Start a collector over a store of its own that serves all tests of a module."""
    with contextlib.ExitStack() as stack:

        def start(**settings: object) -> Running:
            folder = tmp_path_factory.mktemp("shared")
            store = stack.enter_context(Store.open(f"sqlite:///{folder / 'service.db'}"))
            return _start(stack, store, settings)

        yield start


@pytest.fixture(scope="module")
def shared(serve_module) -> Running:
    """One collector for all tests of a module; each uses a run of its own."""
    return serve_module()


def _start(stack: contextlib.ExitStack, store: Store, settings: dict[str, object]) -> Running:
    service = stack.enter_context(Service(Settings(port=0, **settings), store))
    headers = {"Authorization": f"Bearer {settings['token']}"} if settings.get("token") else {}
    client = httpx.Client(base_url=service.url, headers=headers, trust_env=False, timeout=20)
    return Running(service, store, stack.enter_context(client))


@pytest.fixture(scope="session")
def token() -> str:
    """A token that the settings take."""
    return TOKEN


@pytest.fixture
def run_info() -> Callable[..., wire.RunInfo]:
    """Make a new run."""

    def make(name: str = "a run", **more: object) -> wire.RunInfo:
        return wire.RunInfo(id=uuid.uuid4().hex, name=name, created=time.time(), **more)

    return make


@pytest.fixture
def frame() -> Callable[..., wire.Frame]:
    """Make a frame that holds one loss, the step as its value, unless told otherwise."""

    def make(sequence: int, *measurements: wire.Measurement, **more: object) -> wire.Frame:
        return wire.Frame(
            sequence=sequence,
            step=sequence,
            time=time.time(),
            measurements=list(measurements) or [wire.Measurement("loss", float(sequence))],
            **more,
        )

    return make


@pytest.fixture
def batch(run_info, frame) -> Callable[..., wire.Batch]:
    """Make a batch of a new run with three frames, unless told otherwise."""

    def make(frames: list[wire.Frame] | None = None, **more: object) -> wire.Batch:
        more = {"run": run_info(), "writer": uuid.uuid4().hex, "sent": time.time(), **more}
        return wire.Batch(frames=[frame(n) for n in range(3)] if frames is None else frames, **more)

    return make


@pytest.fixture
def eventually() -> Callable[[Callable[[], object]], object]:
    """Wait until something is true, and return it; fail after 20 s."""

    def wait(condition: Callable[[], object]) -> object:
        deadline = time.monotonic() + 20
        while not (found := condition()):
            assert time.monotonic() < deadline, "still not true after 20 s"
            time.sleep(0.02)
        return found

    return wait
