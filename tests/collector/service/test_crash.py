"""A collector killed in the middle of a stream of batches: nothing acknowledged is lost, nothing is stored twice."""

import json
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import uuid

import httpx
import pytest

from learnmech import wire

WRITERS = 3
BATCHES = 120
FRAMES = 5


class Collector:
    """`learnmech collect` as a process of its own."""

    def __init__(self, folder, port: int = 0) -> None:
        self.folder = folder
        ready = folder / f"ready-{uuid.uuid4().hex}"
        self.log = (folder / "log").open("ab")
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "learnmech.cli", "collect", "--db", f"sqlite:///{folder / 'crash.db'}",
                "--port", str(port), "--ready-file", str(ready),
            ],
            stdout=self.log, stderr=self.log,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while not ready.exists():
            assert self.process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, "the collector did not start"
            time.sleep(0.02)
        told = json.loads(ready.read_text())
        assert told["pid"] == self.process.pid
        self.port, self.url = told["port"], told["url"]

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        status = self.process.wait(30)
        self.log.close()
        return status


class Writer(threading.Thread):
    """Sends its batches in order and repeats each until it is acknowledged, as the courier does."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.run_info = wire.RunInfo(id=uuid.uuid4().hex, name="crash", created=time.time())
        self.writer = uuid.uuid4().hex
        self.acknowledged = 0
        self.duplicates = 0
        self.retries = 0
        self.refused: list[str] = []

    def run(self) -> None:
        with httpx.Client(trust_env=False, timeout=10) as client:
            for number in range(BATCHES):
                self._send(client, wire.encode(self._batch(number)))
                self.acknowledged += 1

    def _batch(self, number: int) -> wire.Batch:
        sequences = range(number * FRAMES, (number + 1) * FRAMES)
        return wire.Batch(
            run=self.run_info, writer=self.writer, sent=time.time(),
            frames=[
                wire.Frame(n, n, time.time(), measurements=[
                    wire.Measurement("loss", n + 0.5), wire.Measurement("grad_norm", n + 0.25),
                    wire.Measurement("weight_norm", n + 0.125, scope="layer.weight"),
                ], events=[wire.Event("user", n, time.time(), f"frame {n}")])
                for n in sequences
            ],
        )  # fmt: skip

    def _send(self, client: httpx.Client, body: bytes) -> None:
        while True:
            try:
                answer = client.post(
                    f"{self.url}/v1/measurements", content=body, headers={"Content-Type": "application/msgpack"}
                )
            except httpx.TransportError:
                self.retries += 1
                time.sleep(0.02)
                continue
            if answer.status_code == 200:
                self.duplicates += answer.json()["duplicates"]
                return
            if answer.status_code != 503:
                self.refused.append(answer.text)
                return
            self.retries += 1


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "collector"
    made.mkdir()
    return made


def test_killed_again_and_again_it_loses_and_doubles_nothing(folder):
    rng = random.Random(7)
    collector = Collector(folder)
    writers = [Writer(collector.url) for _ in range(WRITERS)]
    for writer in writers:
        writer.start()
    total = WRITERS * BATCHES
    for share in (0.15, 0.45, 0.75):
        while sum(writer.acknowledged for writer in writers) < share * total:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.02)  # anywhere within a batch
        collector.end(signal.SIGKILL)
        collector = Collector(folder, collector.port)
    for writer in writers:
        writer.join(120)
        assert not writer.is_alive()
        assert not writer.refused
    assert sum(writer.retries for writer in writers) > 0, "no batch met the dead collector: the test tested nothing"
    assert collector.end(signal.SIGTERM) == 0

    expected = range(BATCHES * FRAMES)
    with sqlite3.connect(folder / "crash.db") as database:
        for writer in writers:
            for observable, scope, offset in [
                ("loss", "", 0.5),
                ("grad_norm", "", 0.25),
                ("weight_norm", "layer.weight", 0.125),
            ]:
                rows = database.execute(
                    "SELECT step, value FROM observations"
                    " WHERE run_id = ? AND observable = ? AND scope = ? ORDER BY step",
                    (writer.run_info.id, observable, scope),
                ).fetchall()
                assert rows == [(n, n + offset) for n in expected]
            messages = database.execute(
                "SELECT message FROM events WHERE run_id = ? AND kind = 'user' ORDER BY step", (writer.run_info.id,)
            ).fetchall()
            assert messages == [(f"frame {n}",) for n in expected]
            counted = database.execute("SELECT count(*) FROM observations WHERE run_id = ?", (writer.run_info.id,))
            assert counted.fetchone() == (3 * len(expected),)
    database.close()
    assert "Traceback" not in (folder / "log").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_stops_in_order(folder, number):
    """Exit status 0, a last line, and everything acknowledged judged; with an open stream."""
    collector = Collector(folder)
    with (
        httpx.Client(trust_env=False, timeout=10) as client,
        client.stream("GET", f"{collector.url}/v1/stream") as stream,
    ):
        lines = stream.iter_lines()
        next(lines)
        writer = Writer(collector.url)
        writer._send(client, wire.encode(writer._batch(0)))
        began = time.monotonic()
        assert collector.end(number) == 0
        assert time.monotonic() - began < 9, "below the grace period of 10 s"
        for _ in lines:
            pass
    text = (folder / "log").read_text()
    assert "stopped" in text
    assert "Traceback" not in text
    assert not list(folder.glob("ready-*")), "the ready file goes with the process"
