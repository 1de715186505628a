"""How a demo ends when something else ends it."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import time

import pytest

from learnmech.collector.store import Store

pytestmark = pytest.mark.timeout(180)

DEMO = [sys.executable, "-m", "learnmech.cli", "demo", "--quick"]


@pytest.mark.slow
def test_ctrl_c_stops_the_collector_and_keeps_what_was_measured(tmp_path, environment):
    demo = subprocess.Popen(
        [*DEMO, "--port", "0"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        url = demo.stdout.readline().split()[-1]
        port = int(url.rstrip("/").rpartition(":")[2])
        until = time.monotonic() + 120
        while not any((run["last_step"] or 0) >= 40 for run in ask(port, "/v1/runs")["runs"]):
            assert time.monotonic() < until, "the demo measured nothing"
            time.sleep(0.1)
        demo.send_signal(signal.SIGINT)
        out, err = demo.communicate(timeout=60)
    finally:
        demo.kill()
        demo.wait()
    assert demo.returncode == 130
    assert "interrupted" in out
    assert "Traceback" not in out + err
    with pytest.raises(OSError, match=r"[Rr]efused"), socket.create_connection(("127.0.0.1", port), timeout=5):
        pass
    store = Store.open(f"sqlite:///{tmp_path / 'learnmech.db'}", create=False)
    (run,) = store.runs()
    store.close()
    assert run.status == "failed"
    assert run.last_step >= 40


def ask(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path)
    try:
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def test_a_taken_port_is_a_sentence(tmp_path, environment):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [*DEMO, "--port", str(port)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
    assert done.returncode == 1
    assert f"port {port} is taken; pick another with --port" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_database_that_is_not_ours_is_a_sentence_and_stays_as_it_is(tmp_path, environment):
    file = tmp_path / "notes.txt"
    file.write_text("not a database " * 100)
    done = subprocess.run(
        [*DEMO, "--port", "0", "--db", f"sqlite:///{file}"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "no SQLite database" in done.stderr
    assert "Traceback" not in done.stderr
    assert file.read_text() == "not a database " * 100
