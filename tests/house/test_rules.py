"""The import rules hold, and would notice a break."""

import subprocess
import sys
from pathlib import Path

import pytest


def lint_imports(config: Path) -> subprocess.CompletedProcess[str]:
    command = Path(sys.executable).with_name("lint-imports")
    return subprocess.run(
        [command, "--no-logo", "--no-cache", "--config", config], cwd=config.parent, capture_output=True, text=True
    )


def test_import_rules_hold(repository, tmp_path):
    done = lint_imports(repository / "pyproject.toml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("source", "forbidden"),
    [
        ("learnmech.probes", "learnmech.observables"),
        ("learnmech.collector", "sqlalchemy"),
        ("learnmech.probes", "torch"),
    ],
)
def test_rules_see_through_the_namespace(source, forbidden, repository, tmp_path):
    """Imports that do exist, forbidden here: were a portion skipped silently, these would pass."""
    config = tmp_path / "rules.toml"
    config.write_text(
        f"""
[tool.importlinter]
root_packages = ["learnmech.probes", "learnmech.collector", "learnmech.observables"]
include_external_packages = true
[[tool.importlinter.contracts]]
name = "cannot hold"
type = "forbidden"
source_modules = ["{source}"]
forbidden_modules = ["{forbidden}"]
""",
        encoding="utf-8",
    )
    done = lint_imports(config)
    assert done.returncode != 0
    assert "cannot hold BROKEN" in done.stdout, done.stdout + done.stderr
