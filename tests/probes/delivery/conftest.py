"""A store that keeps what it is given exactly once, and outboxes that write to it."""

import contextlib
import gzip
import http.server
import json
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from learnmech.probes.delivery import Outbox
from learnmech.probes.delivery import courier as courier_module
from learnmech.wire import Ack, Batch, Frame, Measurement, RunInfo, decode, encode


class Store:
    """A sink in memory with the promises of the real one: a frame lands once, whole, whatever is sent how often.

    `plan(delivery, batch)` is asked before and may raise; `after` the commit, so that an answer can be lost.
    """

    def __init__(self) -> None:
        self.frames: dict[tuple[str, str, int], Frame] = {}
        self.order: dict[str, list[int]] = {}
        self.deliveries: list[Batch] = []
        self.heartbeats: list[Batch] = []
        self.plan: Callable[[int, Batch], None] = lambda delivery, batch: None
        self.after: Callable[[int, Batch], None] = lambda delivery, batch: None
        self.rejected = lambda batch: []
        self.arrived = threading.Condition()
        self.closed = 0

    def deliver(self, batch: Batch) -> Ack:
        if batch.heartbeat:
            self.heartbeats.append(batch)
            return Ack(0, 0, [], -1, time.time())
        self.deliveries.append(batch)
        delivery = len(self.deliveries)
        self.plan(delivery, batch)
        new = 0
        with self.arrived:
            for frame in batch.frames:
                key = (batch.run.id, batch.writer, frame.sequence)
                if key not in self.frames:
                    self.frames[key] = frame
                    self.order.setdefault(batch.writer, []).append(frame.sequence)
                    new += len(frame.measurements)
            self.arrived.notify_all()
        self.after(delivery, batch)
        total = sum(len(frame.measurements) for frame in batch.frames)
        return Ack(new, total - new, self.rejected(batch), batch.frames[-1].sequence, time.time())

    def close(self) -> None:
        self.closed += 1

    def wait(self, frames: int, timeout: float = 20.0) -> None:
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.frames) >= frames, timeout), (len(self.frames), frames)

    @property
    def steps(self) -> list[int]:
        return [frame.step for frame in self.frames.values()]


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def run() -> RunInfo:
    return RunInfo(uuid.uuid4().hex, "a run", 1.0)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry in milliseconds."""
    monkeypatch.setattr("learnmech.probes.delivery.backoff.Backoff.FIRST", 0.01)
    monkeypatch.setattr("learnmech.probes.delivery.backoff.Backoff.LAST", 0.02)
    monkeypatch.setattr("learnmech.probes.delivery.backoff.Backoff.LEAST", 0.001)
    monkeypatch.setattr(courier_module, "TICK", 0.01)


@pytest.fixture
def outbox(store: Store, run: RunInfo) -> Iterator[Callable[..., Outbox]]:
    """Make outboxes that deliver to `store`, and end them with the test."""
    made = []

    def make(**settings) -> Outbox:
        settings = {"sink": "http://collector.test:8765", "open_sink": lambda url: store, **settings}
        made.append(Outbox(settings.pop("run", run), **settings))
        return made[-1]

    yield make
    for item in made:
        item.close(0.0)


@pytest.fixture
def values() -> list[Measurement]:
    return [Measurement("weight_norm", 0.1 * index + 1e-3, scope=f"layers.{index}.weight") for index in range(50)]


@pytest.fixture
def spool() -> Path:
    """The default spool of a process that works where the tests do."""
    return Path(".learnmech/spool")


@pytest.fixture
def child() -> dict[str, str]:
    """The environment of a subprocess that imports what the tests import."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}


PRELUDE = """
import gc, json, multiprocessing, os, random, signal, sys, threading, time, uuid
from pathlib import Path
from learnmech.probes.delivery import Outbox
from learnmech.wire import Ack, Measurement, RunInfo
VALUES = [Measurement("weight_norm", 0.1 * index, scope=f"layers.{index}.weight") for index in range(50)]
RUN = RunInfo("ab" * 16, "killed", 1.0)

class Store:
    def __init__(self, path="store"):
        self.path = path
    def deliver(self, batch):
        # One line for each frame, whole or not at all, as O_APPEND writes it.
        lines = "".join(f"{batch.writer} {frame.sequence} {frame.step}\\n" for frame in batch.frames)
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(fd, lines.encode())
        os.close(fd)
        return Ack(len(batch.frames), 0, [], batch.frames[-1].sequence if batch.frames else -1, time.time())
    def close(self):
        pass
"""


@pytest.fixture
def script(child: dict[str, str]) -> Callable[..., str]:
    """Runs code in a process of its own, with a store in a file and measurements at hand."""

    def run(body: str, *arguments: str, check: bool = True, timeout: float = 60) -> str:
        code = PRELUDE + textwrap.dedent(body)
        # Warnings are errors there too: a leaked file or thread is noticed.
        command = [sys.executable, "-W", "error", "-c", code, *arguments]
        done = subprocess.run(command, env=child, capture_output=True, text=True, timeout=timeout, check=False)
        assert not check or done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def prelude() -> str:
    """What every script begins with."""
    return PRELUDE


class Collector(http.server.ThreadingHTTPServer):
    """Stores what it is sent once; `answer` may say something else first."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, store, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.store = store
        self.requests, self.connections = [], []
        self.answer = lambda request, batch: None
        self.format = "json"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def process_request(self, request, client_address):
        self.connections.append(request)
        super().process_request(request, client_address)

    def stop(self):
        self.shutdown()
        self.server_close()
        # A killed server's connections end with it.
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.path, dict(self.headers), len(body)))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        batch = decode(body, Batch)
        said = self.server.answer(self, batch)
        if said == "hang up":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        if said is None:
            ack = self.server.store.deliver(batch)
            kind = self.server.format
            said = (200, encode(ack, kind), {"Content-Type": f"application/{kind}"})
        status, content, headers = said
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def serve(store: Store) -> Iterator[Callable[..., Collector]]:
    """Starts collectors on a port, any by default."""
    servers = []

    def start(port: int = 0) -> Collector:
        servers.append(Collector(store, port))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def collector(serve: Callable[..., Collector]) -> Collector:
    """A collector on any port."""
    return serve()
