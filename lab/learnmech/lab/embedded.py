"""A collector in a process of its own, for as long as the demo runs."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

LOOPBACK: Final = "127.0.0.1"
DEFAULT_PORT: Final = 8765

_START: Final = 60.0
"""Seconds to wait for the first answer: importing the server takes one on an idle machine."""

_STOP: Final = 15.0
"""Seconds to wait for the end: the collector gives requests and the judge ten."""

_OTHERS: Final = ("LEARNMECH_HOST", "LEARNMECH_PORT", "LEARNMECH_DB", "LEARNMECH_TOKEN", "LEARNMECH_TOKEN_FILE")
"""Settings of another collector in the environment, which must not reach this one."""


class CollectorError(RuntimeError):
    """The collector could not be started, or ended while it was needed."""


def free(port: int) -> bool:
    """Tell whether this machine can listen on `port` now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: a port in TIME_WAIT is free
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


class EmbeddedCollector:
    """Starts `learnmech collect` and stops it again.

    It runs in a process group of its own, so that Ctrl-C reaches the training first and the last measurements still
    find the collector there.

    Args:
        database: Database URL.
        port: Port to listen on; None for 8765, or any free one if that is taken.

    Raises:
        CollectorError: `port` is taken.
    """

    def __init__(self, database: str, port: int | None = None) -> None:
        if port is not None and port and not free(port):
            raise CollectorError(f"port {port} is taken; pick another with --port, or leave it out for any free one")
        self._database = database
        self._port = port if port is not None else DEFAULT_PORT if free(DEFAULT_PORT) else 0
        self._folder = tempfile.TemporaryDirectory(prefix="learnmech-demo-")
        self._ready = Path(self._folder.name) / "ready.json"
        self._log = Path(self._folder.name) / "collector.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""
        """Address of the page, once it is up."""

    def __enter__(self) -> Self:
        """Start the process; `wait` waits until it answers."""
        environment = {name: value for name, value in os.environ.items() if name not in _OTHERS}
        environment["LEARNMECH_DB"] = self._database  # not an option: other users can read command lines, and passwords
        command = [sys.executable, "-m", "learnmech.cli", "collect"]
        command += ["--host", LOOPBACK, "--port", str(self._port), "--ready-file", str(self._ready)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 (our own command, no shell)
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                process_group=0,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the process: politely, then not."""
        process, self._process = self._process, None
        try:
            if process is not None and process.poll() is None:
                process.terminate()
                try:
                    process.wait(_STOP)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        finally:
            self._folder.cleanup()

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return None if self._process is None else self._process.pid

    def wait(self) -> str:
        """Wait until requests are answered.

        Returns:
            The address of the page, which is also the sink of trainers.

        Raises:
            CollectorError: It ended, or did not answer in time.
        """
        until = time.monotonic() + _START
        while time.monotonic() < until:
            if self._ready.exists():
                self.url = str(json.loads(self._ready.read_text(encoding="utf-8"))["url"])
                return self.url
            self.check()
            time.sleep(0.05)
        raise CollectorError(f"the collector did not answer within {_START:g} s; it said: {self._last_words()}")

    def check(self) -> None:
        """Make sure that the process runs.

        Raises:
            CollectorError: It ended.
        """
        code = None if self._process is None else self._process.poll()
        if self._process is None or code is not None:
            raise CollectorError(f"the collector ended with exit code {code}; it said: {self._last_words()}")

    def _last_words(self) -> str:
        try:
            lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            lines = []
        return " / ".join(line for line in lines[-5:] if line.strip()) or "nothing"
