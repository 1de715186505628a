"""The examples in docstrings, run as doctests; a program of its own, started in an empty folder with module names."""

import doctest
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

COMPONENTS = ("core", "probes", "collector", "dashboards", "lab")


def modules(root: Path) -> list[str]:
    """Return the import names of the modules of the components that hold an example."""
    found = []
    for component in COMPONENTS:
        for path in sorted((root / component / "learnmech").rglob("*.py")):
            if ">>> " in path.read_text(encoding="utf-8"):
                parts = path.relative_to(root / component).with_suffix("").parts
                found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


def problems(root: Path) -> Iterator[str]:
    """Yield what the examples did that their docstrings do not say."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, __file__],
            input=json.dumps(modules(root)),
            cwd=folder,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(str(root / component) for component in COMPONENTS)},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        yield done.stdout + done.stderr


def main() -> int:
    """Run the examples of the modules named on standard input."""
    results = [doctest.testmod(importlib.import_module(name)) for name in json.load(sys.stdin)]
    return 1 if any(result.failed for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
