"""`make` and CI: what is documented exists, and what exists is documented."""

import re
import subprocess

import pytest


@pytest.fixture(scope="module")
def targets(repository):
    """The targets that `make help` lists."""
    done = subprocess.run(["make", "help"], cwd=repository, capture_output=True, text=True, check=True)
    return dict(re.findall(r"^  make ([a-z-]+) +(\S.*)$", done.stdout, flags=re.MULTILINE))


def test_every_target_has_a_sentence(targets, repository):
    (phony,) = re.findall(r"^\.PHONY: (.*)$", (repository / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert set(targets) == set(phony.split())


def test_contributing_names_every_target(targets, repository):
    text = (repository / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert not [target for target in targets if f"make {target}" not in text]


@pytest.mark.parametrize("target", ["demo", "test", "lint", "types", "docs-check", "check"])
def test_targets_build_their_environment(target, repository, tmp_path):
    """From nothing: a dry run in a tree without an environment begins by making one."""
    done = subprocess.run(
        ["make", "--dry-run", target, f"VENV={tmp_path / 'none'}"], cwd=repository, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    steps = [line for line in done.stdout.splitlines() if "-m venv" in line or "-m pip" in line]
    assert "-m venv" in steps[0]
    assert any("--editable '.[all]'" in step for step in steps)
    assert any("--group dev" in step for step in steps) == (target != "demo"), "the demo needs no development tools"


def test_old_python_is_a_sentence(repository, tmp_path):
    old = tmp_path / "python3.8"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.8.20 && exit 0\nexit 1\n', encoding="utf-8")
    old.chmod(0o755)
    done = subprocess.run(
        ["make", "demo", f"PYTHON={old}", f"VENV={tmp_path / 'none'}"], cwd=repository, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "learnmech needs Python 3.11 or newer" in done.stdout
    assert "Python 3.8.20" in done.stdout


def test_ci_runs_every_check(repository):
    script = (repository / ".ci/run").read_text(encoding="utf-8")
    for target in ("setup", "test", "lint", "types", "docs-check"):
        assert f"make {target}" in script
    assert "export CI=true" in script
    assert (repository / ".ci/run").stat().st_mode & 0o111
