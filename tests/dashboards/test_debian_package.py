"""`scripts/debian-package`: installs what a test needs, or says what to type."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def _run(repository: Path, *packages: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({"PATH": path} if path else {})
    return subprocess.run(
        [repository / "scripts/debian-package", *packages], env=environment, capture_output=True, text=True, timeout=60
    )


def test_without_a_package_it_says_how_to_call_it(repository: Path) -> None:
    outcome = _run(repository)
    assert outcome.returncode == 2
    assert "chromium" in outcome.stderr


@pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="needs the system package dpkg")
def test_what_is_installed_is_left_alone(repository: Path) -> None:
    outcome = _run(repository, "dpkg", "coreutils")
    assert (outcome.returncode, outcome.stdout, outcome.stderr) == (0, "", "")


def test_without_apt_it_says_loudly_what_is_missing(repository: Path, tmp_path: Path) -> None:
    for tool in ("sh", "grep", "id"):
        found = shutil.which(tool)
        assert found
        (tmp_path / tool).symlink_to(found)
    outcome = _run(repository, "a-browser", "another", path=str(tmp_path))
    assert outcome.returncode == 1
    assert "SKIPPED" in outcome.stderr
    assert "a-browser another" in outcome.stderr
