"""The whole path under SIGKILL: what was measured arrives, once, whoever dies. Counted row by row, nothing mocked."""

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

TRAINER = Path(__file__).with_name("trainer.py")


def learnmech(*words, **keywords):
    return subprocess.Popen([sys.executable, "-m", "learnmech.cli", *map(str, words)], text=True, **keywords)


@pytest.fixture
def children():
    """Whatever is started here is gone when the test is."""
    with contextlib.ExitStack() as stack:

        def keep(process):
            stack.enter_context(process)  # waits, and closes its pipes
            stack.callback(process.kill)
            return process

        yield keep


@pytest.fixture
def collector(children, tmp_path):
    """Start a collector on one port and one database, again and again."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def start():
        ready = tmp_path / "ready.json"
        ready.unlink(missing_ok=True)
        process = children(
            learnmech("collect", "--db", f"sqlite:///{tmp_path / 'all.db'}", "--port", port, "--ready-file", ready)
        )
        deadline = time.monotonic() + 60
        while not ready.exists():
            assert process.poll() is None, "the collector did not start"
            assert time.monotonic() < deadline, "the collector took over a minute to start"
            time.sleep(0.05)
        assert json.loads(ready.read_text())["port"] == port
        return process

    start.url = f"http://127.0.0.1:{port}"
    return start


def train(sink, steps, pace, **keywords):
    environment = dict(os.environ, LEARNMECH_SPOOL="spool", OMP_NUM_THREADS="1")
    return subprocess.Popen(
        [sys.executable, str(TRAINER), sink, str(steps), str(pace)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        **keywords,
    )


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()


def measured(database, observable="weight_norm"):
    """Return the step of every stored row of the whole model's series, sorted, repeats included."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        rows = connection.execute(
            "SELECT step FROM observations WHERE observable = ? AND scope = '' ORDER BY step", (observable,)
        )
        return [step for (step,) in rows]


def ingest(database):
    done = learnmech("collect", "--db", f"sqlite:///{database}", "--ingest", "spool", stdout=subprocess.PIPE)
    output, _ = done.communicate(timeout=120)
    assert done.returncode == 0, output


def test_a_collector_killed_in_the_middle_of_a_run_loses_nothing_once_it_is_back(collector, children, tmp_path):
    first = collector()
    trainer = children(train(collector.url, 400, 0.01))
    lines = iter(trainer.stdout)
    for step, _line in enumerate(lines):
        if step == 60:
            kill(first)
        elif step == 180:
            second = collector()
        elif step == 240:
            kill(second)
        elif step == 300:
            third = collector()
    assert trainer.wait() == 0
    steps = measured(tmp_path / "all.db")
    if steps != list(range(400)):  # a backoff may outlast the recorder's goodbye; the rest is on disk, not lost
        third.terminate()
        assert third.wait() == 0
        ingest(tmp_path / "all.db")
        steps = measured(tmp_path / "all.db")
    assert steps == list(range(400)), "every step once, none twice"
    with contextlib.closing(sqlite3.connect(tmp_path / "all.db")) as connection:
        assert connection.execute("SELECT status FROM runs").fetchall() == [("finished",)]
        assert connection.execute("SELECT count(*) FROM events WHERE kind = 'gap'").fetchone() == (0,)


@pytest.mark.parametrize("sink", ["http://127.0.0.1:9", "sqlite:///own.db"], ids=["nobody answers", "store in process"])
def test_a_trainer_killed_loses_nothing_measured_more_than_a_second_before(sink, children, tmp_path):
    trainer = children(train(sink, 100_000, 0.005))
    done = {}
    for line in trainer.stdout:
        step, when = line.split()
        done[int(step)] = float(when)
        if len(done) == 500:
            break
    killed = time.time()
    kill(trainer)
    ingest(tmp_path / "own.db")
    expected = {step for step, when in done.items() if when < killed - 1}
    steps = measured(tmp_path / "own.db")
    assert len(expected) > 100
    assert expected <= set(steps)
    assert len(steps) == len(set(steps)), "nothing twice"
    assert steps == list(range(steps[0], steps[-1] + 1)), "and no hole before the end"
