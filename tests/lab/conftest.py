"""Fixtures of the lab's tests: one demo, run once, whose output and database several tests look at."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Demo:
    """What a demo left behind."""

    document: dict[str, Any]
    stderr: str
    database: str
    folder: Path

    def rows(self, law: str, run: str) -> list[dict[str, Any]]:
        """Every scope of one law in one run."""
        return [row for row in self.document["laws"] if (row["law"], row["run"]) == (law, run)]

    def headline(self, law: str, run: str) -> dict[str, Any]:
        """The row that the table shows."""
        (row,) = [row for row in self.document["table"] if (row["law"], row["run"]) == (law, run)]
        return row


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """The environment of a person who has set nothing, and who turns warnings on."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LEARNMECH_")}
    return kept | {"PYTHONWARNINGS": "default"}


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Demo:
    """Run `learnmech demo --quick --json` as a person would, in an empty folder."""
    folder = tmp_path_factory.mktemp("demo")
    database = f"sqlite:///{folder / 'demo.db'}"
    command = [sys.executable, "-m", "learnmech.cli", "demo", "--quick", "--json", "--port", "0", "--db", database]
    running = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        out, err = running.communicate(timeout=280)
    except subprocess.TimeoutExpired:
        running.terminate()  # not kill: it has a collector to stop
        out, err = running.communicate()
    assert running.returncode == 0, f"exit code {running.returncode}\n{out[-2000:]}\n{err[-4000:]}"
    return Demo(json.loads(out), err, database, folder)
