"""The two or three trainings of a dry run, each in a child process with a temporary folder of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATIENCE = 10.0
"""Seconds that a child has to end after Ctrl-C: Lightning shuts down its workers then."""

PAUSE = 0.1
"""Seconds between two looks at a child."""

_ELSEWHERE = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "TORCHELASTIC_RUN_ID")
"""Environment variables by which trainers take themselves for one process of several."""


@dataclass(frozen=True, slots=True)
class Target:
    """What to try, and how.

    Attributes:
        name: A script, or `module:name`.
        words: Arguments of the script.
        data: Where the loader comes from, as `module:function`.
        uses: Measurements of each probe.
    """

    name: str
    words: Sequence[str] = ()
    data: str | None = None
    uses: int = 2


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a child ended.

    Attributes:
        began: True if it came to the target.
        code: Its exit code.
        result: What it wrote down, None if it came to no training.
        problem: Why its target cannot be trained, '' if it can.
        output: What it printed.
    """

    began: bool
    code: int
    result: dict[str, Any] | None
    problem: str
    output: str


def train(
    target: Target, folder: Path, updates: int | None, tell: Callable[[str], None], *, verbose: bool = False
) -> Outcome:
    """Train in a child process: with every probe, or without any.

    Args:
        target: What to train.
        folder: An empty folder for everything that the child writes down.
        updates: Updates without probes; None: with probes, as many as they need.
        tell: Told what the child does.
        verbose: Pass what it prints on to standard error.

    Raises:
        KeyboardInterrupt: Ctrl-C; the child has ended.
    """
    folder.mkdir()
    plan = {"uses": target.uses, "updates": updates, "data": target.data}
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    command = [sys.executable, "-m", "learnmech.probes.doctor.inside", str(folder), target.name, *target.words]
    with (folder / "output").open("wb") as output:
        child = subprocess.Popen(  # noqa: S603 (the user's own script, as the user asks)
            command,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno() if verbose else output,
            stderr=None if verbose else subprocess.STDOUT,
            env=_environment(),
        )
        try:
            while child.poll() is None:
                tell(_read(folder / "progress"))
                time.sleep(PAUSE)
        except KeyboardInterrupt:
            _end(child)
            raise
    result = _read(folder / "result.json")
    return Outcome(
        (folder / "progress").exists(),
        child.returncode,
        json.loads(result) if result else None,
        _read(folder / "problem"),
        _read(folder / "output"),
    )


def _environment() -> dict[str, str]:
    """Return the environment of a child: one process, no compiled files beside the script, no trackers."""
    kept = {k: v for k, v in os.environ.items() if k not in _ELSEWHERE and not k.startswith("SLURM_")}
    # a hash seed of its own would give sets of strings another order in each child
    return kept | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0", "WANDB_MODE": "disabled"}


def _end(child: subprocess.Popen[bytes]) -> None:
    child.send_signal(signal.SIGINT)
    try:
        child.wait(PATIENCE)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        child.kill()
        child.wait()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
