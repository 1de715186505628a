import os
import signal
import socket

import pytest

from learnmech.lab.embedded import CollectorError, EmbeddedCollector, free
from learnmech.lab.readback import Readback, ReadbackError


def test_a_port_in_use_is_not_free():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert not free(taken.getsockname()[1])


def test_the_collector_answers_and_is_gone_afterwards(tmp_path, monkeypatch):
    """Settings of another collector in the environment must not reach this one."""
    monkeypatch.setenv("LEARNMECH_TOKEN", "a-token-of-somebody-else")
    monkeypatch.setenv("LEARNMECH_HOST", "0.0.0.0")
    with EmbeddedCollector(f"sqlite:///{tmp_path / 'a.db'}", port=0) as collector:
        readback = Readback(collector.wait())
        assert readback.get("/v1/runs") == {"runs": []}
        with pytest.raises(ReadbackError, match="404"):
            readback.run("0" * 32)
    with pytest.raises(ReadbackError, match="did not answer"):
        readback.get("/v1/runs")


def test_an_unexpected_end_is_noticed_with_its_exit_code(tmp_path):
    with EmbeddedCollector(f"sqlite:///{tmp_path / 'a.db'}", port=0) as collector:
        collector.wait()
        collector.check()
        os.kill(collector.pid, signal.SIGKILL)
        os.waitid(os.P_PID, collector.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(CollectorError, match="exit code -9"):
            collector.check()


def test_a_collector_that_cannot_start_says_why(tmp_path):
    with (
        EmbeddedCollector(f"sqlite:///{tmp_path / 'missing' / 'a.db'}", port=0) as collector,
        pytest.raises(CollectorError, match="it said: learnmech: "),
    ):
        collector.wait()


def test_a_taken_port_is_refused_when_asked_for_and_avoided_when_not(tmp_path, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(CollectorError, match=f"port {port} is taken"):
            EmbeddedCollector("sqlite://", port=port)
        monkeypatch.setattr("learnmech.lab.embedded.DEFAULT_PORT", port)
        with EmbeddedCollector(f"sqlite:///{tmp_path / 'a.db'}") as collector:
            assert f":{port}" not in collector.wait()
