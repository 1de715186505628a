"""A training that is told to terminate: its run does not stay `running`, and the process ends as it would have."""

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from learnmech.wire.spool import batches

TRAINER = Path(__file__).parent / "trainer.py"


@pytest.fixture
def started():
    """`started(sink, *arguments)`: a training of which two steps are done."""
    with contextlib.ExitStack() as stack:

        def start(sink, *arguments):
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, TRAINER, sink, "10000", "0.01", *arguments], stdout=subprocess.PIPE, text=True
                )
            )
            stack.callback(process.kill)
            for _ in range(2):
                assert process.stdout.readline()
            return process

        yield start


def events(folder):
    return [event for batch in batches(folder) for frame in batch.frames for event in frame.events]


def test_sigterm_ends_the_run_as_failed_and_the_process_by_the_signal(tmp_path, started):
    process = started(f"spool:{tmp_path}")
    process.terminate()
    assert process.wait(20) == -signal.SIGTERM
    [last] = [event for event in events(tmp_path) if event.kind in ("run_failed", "run_finished")]
    assert last.kind == "run_failed"
    assert "Terminated" in last.message
    assert "SIGTERM" in last.message


def test_it_does_not_wait_for_a_collector_that_is_not_there(tmp_path, monkeypatch, started):
    monkeypatch.setenv("LEARNMECH_SPOOL", str(tmp_path))
    process = started("http://127.0.0.1:9")
    begin = time.monotonic()
    process.terminate()
    assert process.wait(20) == -signal.SIGTERM
    assert time.monotonic() - begin < 10, "two seconds for delivery, on a busy machine"


def test_a_handler_of_the_users_own_is_left_alone(tmp_path, started):
    process = started(f"spool:{tmp_path}", "--own-handler")
    process.terminate()
    out, _ = process.communicate(timeout=20)
    assert "own handler" in out
    assert process.returncode == 7
    assert not [event for event in events(tmp_path) if event.kind == "run_failed" and "Terminated" in event.message]


def test_a_forked_child_ends_by_the_signal_and_the_run_goes_on(tmp_path, started):
    process = started(f"spool:{tmp_path}", "--fork")
    line = ""
    while "child" not in line:
        line = process.stdout.readline()
    assert line.split() == ["child", str(-signal.SIGTERM)]
    assert process.stdout.readline(), "and training goes on"
    process.kill()
    process.wait(20)
    assert not [event for event in events(tmp_path) if event.kind == "run_failed"]


@pytest.mark.parametrize("times", [1, 3])
def test_a_signal_asks_for_a_measurement(tmp_path, started, times):
    process = started(f"spool:{tmp_path}", "--on-demand")
    for _ in range(times):
        process.send_signal(signal.SIGUSR1)
        for _ in range(30):
            process.stdout.readline()
    process.terminate()
    process.wait(20)
    found = [m for batch in batches(tmp_path) for frame in batch.frames for m in frame.measurements]
    assert len([m for m in found if m.observable == "sharpness"]) == times
