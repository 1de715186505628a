"""A wheel built once, and environments that hold exactly what one extra declares.

Seven real installations of torch would take minutes. An environment here is a real virtual environment whose
site-packages is composed, by symbolic links into the running environment, of exactly the distributions that the built
wheel's metadata asks for (the transitive closure under the extra), and into which pip then installs the wheel. Anything
undeclared is not there to be imported; `pip check` confirms independently that nothing declared is missing.
"""

import importlib.metadata
import os
import subprocess
import sys
import venv
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from email.parser import HeaderParser
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def _run(*command: str | Path, cwd: Path | None = None, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "VIRTUAL_ENV"))}
    return subprocess.run(  # the exit status is what callers look at
        [str(part) for part in command],
        cwd=cwd,
        env=clean | {"COLUMNS": "200", "NO_COLOR": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture(scope="session")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the working tree."""
    folder = tmp_path_factory.mktemp("wheel")
    done = _run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=repository)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def wheel_files(wheel: Path) -> frozenset[str]:
    """The names of the files in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return frozenset(name for name in archive.namelist() if not name.endswith("/"))


@pytest.fixture(scope="session")
def wheel_requirements(wheel: Path) -> list[str]:
    """The `Requires-Dist` lines of the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return HeaderParser().parsestr(archive.read(name).decode()).get_all("Requires-Dist") or []


@cache
def _installed() -> dict[str, importlib.metadata.Distribution]:
    return {canonicalize_name(found.metadata["Name"]): found for found in importlib.metadata.distributions()}


def _wanted(requirements: Iterable[str], extras: frozenset[str]) -> list[Requirement]:
    """The requirements in force here under these extras."""
    parsed = [Requirement(text) for text in requirements]
    environments = [{"extra": extra} for extra in extras or {""}]
    return [one for one in parsed if one.marker is None or any(one.marker.evaluate(each) for each in environments)]


def _closure(requirements: list[str], extra: str) -> set[str]:
    """The distributions that `learnmech[extra]` asks for, transitively, at the versions of the running environment."""
    found: set[tuple[str, frozenset[str]]] = set()
    queue = [("learnmech", frozenset({extra} if extra else ()))]
    while queue:
        name, extras = queue.pop()
        if (name, extras) in found:
            continue
        found.add((name, extras))
        declared = requirements if name == "learnmech" else (_installed()[name].requires or [])
        for wanted in _wanted(declared, extras):
            target = canonicalize_name(wanted.name)
            if target != "learnmech":
                version = _installed()[target].version
                assert wanted.specifier.contains(version, prereleases=True), f"{name} wants {wanted}, here is {version}"
            queue.append((target, frozenset(wanted.extras)))
    return {name for name, _ in found} - {"learnmech"}


@pytest.fixture(scope="session")
def closure(wheel_requirements: list[str]) -> Callable[[str], set[str]]:
    """From an extra to the names of the distributions it brings."""
    return lambda extra: _closure(wheel_requirements, extra)


def _top_levels(distribution: importlib.metadata.Distribution) -> set[str]:
    files = distribution.files or []
    return {file.parts[0] for file in files} - {"..", "__pycache__"}


@cache
def _shared_top_levels() -> frozenset[str]:
    """Folders that several distributions write into (namespaces): these are linked file by file."""
    counts = Counter(top for found in _installed().values() for top in _top_levels(found))
    return frozenset(top for top, count in counts.items() if count > 1)


def _link(distribution: importlib.metadata.Distribution, site: Path) -> None:
    for top in _top_levels(distribution) - _shared_top_levels():
        (site / top).symlink_to(Path(str(distribution.locate_file(top))).resolve())
    for file in distribution.files or []:
        if file.parts[0] in _shared_top_levels():
            target = site.joinpath(*file.parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(Path(str(distribution.locate_file(file))).resolve())


@dataclass(frozen=True)
class Environment:
    """A virtual environment with one extra of the wheel and nothing else."""

    extra: str
    root: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.root / "bin" / "python"

    def run(self, code: str, cwd: Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run Python code in it, isolated from everything around."""
        return _run(self.python, "-I", "-W", "error::ImportWarning", "-c", code, cwd=cwd, timeout=timeout)

    def command(self, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run its `learnmech` command."""
        return _run(self.root / "bin" / "learnmech", *arguments, cwd=cwd)

    def pip(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run the outer pip on it."""
        return _run(sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", self.python, *arguments)


@pytest.fixture(scope="session")
def environment(
    wheel: Path, closure: Callable[[str], set[str]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Environment]:
    """From an extra (`""` is the base install) to an environment with it, built once."""

    @cache
    def build(extra: str) -> Environment:
        root = tmp_path_factory.mktemp(extra or "base") / "environment"
        venv.create(root, symlinks=True, with_pip=False)
        (site,) = (root / "lib").glob("python*/site-packages")
        for name in sorted(closure(extra)):
            _link(_installed()[name], site)
        made = Environment(extra, root)
        done = made.pip("install", "--quiet", "--no-deps", "--no-index", "--no-compile", wheel)
        assert done.returncode == 0, done.stderr
        return made

    return build
