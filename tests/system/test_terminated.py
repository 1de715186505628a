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
    """`started(sink, *arguments, line="1 ")`: a training that has said a line that begins so."""
    with contextlib.ExitStack() as stack:

        def start(sink, *arguments, line="1 "):
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, TRAINER, sink, "10000", "0.01", *arguments], stdout=subprocess.PIPE, text=True
                )
            )
            stack.callback(process.kill)
            assert any(said.startswith(line) for said in process.stdout)
            return process

        yield start


def ends(folder):
    """How each run ended, by its name."""
    found = {}
    for batch in batches(folder):
        for frame in batch.frames:
            told = [(event.kind, event.message) for event in frame.events if event.kind != "run_started"]
            found.setdefault(batch.run.name, []).extend(
                (kind, message) for kind, message in told if kind in ("run_failed", "run_finished")
            )
    return found


def terminated(process):
    """Terminate, and return how long the end took."""
    begin = time.monotonic()
    process.terminate()
    assert process.wait(20) == -signal.SIGTERM
    return time.monotonic() - begin


def test_a_process_that_waits_in_c_and_holds_the_lock_of_its_logger_ends_with_all_its_runs(tmp_path, started):
    """Python's handler never runs there: this is a rank in an all_reduce whose peers are gone."""
    process = started(f"spool:{tmp_path}", "--blocked", line="3 ")
    time.sleep(0.3)  # for the line after that
    assert terminated(process) < 10, "two seconds for delivery, on a busy machine"
    found = ends(tmp_path)
    assert [kind for kind, _ in found["to be killed"]] == [kind for kind, _ in found["inside"]] == ["run_failed"]
    assert found["to be killed"][0][1] == "Terminated by SIGTERM at step 4"


def test_in_a_measurement_and_without_a_collector_it_waits_for_neither(tmp_path, monkeypatch, started):
    monkeypatch.setenv("LEARNMECH_SPOOL", str(tmp_path))
    process = started("http://127.0.0.1:9", "--slow", line="measuring")
    assert terminated(process) < 10


def test_a_loop_in_another_thread_ends_as_well(tmp_path, started):
    process = started(f"spool:{tmp_path}", "--thread", "--slow", line="measuring")
    assert terminated(process) < 10
    assert [kind for kind, _ in ends(tmp_path)["to be killed"]] == ["run_failed"]


@pytest.mark.parametrize(
    ("arguments", "said", "told"), [("--own-handler", "own handler", 0), ("--chained", "checkpoint saved", 1)]
)
def test_a_handler_of_the_users_own_is_run_to_its_end(tmp_path, started, arguments, said, told):
    process = started(f"spool:{tmp_path}", arguments)
    process.terminate()
    out, _ = process.communicate(timeout=20)
    assert said in out
    assert process.returncode == 7
    messages = [message for _, message in ends(tmp_path)["to be killed"]]
    assert len(messages) == 1
    assert len([message for message in messages if "Terminated by SIGTERM" in message]) == told


def test_signals_ask_for_measurements_and_a_forked_child_ends_alone(tmp_path, started):
    process = started(f"spool:{tmp_path}", "--fork", "--on-demand", line=f"child {-signal.SIGTERM}\n")
    for _ in range(3):
        process.send_signal(signal.SIGUSR1)
        for _ in range(30):
            assert process.stdout.readline(), "training goes on"
    assert ends(tmp_path)["to be killed"] == []
    terminated(process)
    assert [kind for kind, _ in ends(tmp_path)["to be killed"]] == ["run_failed"]
    found = [m for batch in batches(tmp_path) for frame in batch.frames for m in frame.measurements]
    assert len([m for m in found if m.observable == "sharpness"]) == 3
