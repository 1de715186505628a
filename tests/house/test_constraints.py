"""constraints.txt pins the whole environment and nothing else, and the environment that runs the tests obeys it."""

import importlib.metadata
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

# Installed with every environment or used to build the package, by no dependency's wish.
TOOLS = {"pip", "editables"}


@pytest.fixture(scope="module")
def pins(repository):
    lines = (repository / "constraints.txt").read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    assert all(len(pin.specifier) == 1 and next(iter(pin.specifier)).operator == "==" for pin in requirements)
    found = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in requirements}
    assert len(found) == len(requirements), "a distribution is pinned twice"
    return found


@pytest.fixture(scope="module")
def needed(repository):
    """Every distribution that `.[all]` and the development group bring, transitively."""
    declaration = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))
    project, groups = declaration["project"], declaration["dependency-groups"]

    def group(name):
        for entry in groups[name]:
            yield from group(entry["include-group"]) if isinstance(entry, dict) else [entry]

    extras = project["optional-dependencies"].values()
    queue = [*project["dependencies"], *(text for extra in extras for text in extra), *group("dev")]
    found, seen = set(), set()
    while queue:
        requirement = Requirement(queue.pop())
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in seen or key[0] == "learnmech":
            continue
        seen.add(key)
        found.add(key[0])
        environments = [{"extra": extra} for extra in requirement.extras or {""}]
        for text in importlib.metadata.requires(key[0]) or []:
            marker = Requirement(text).marker
            if marker is None or any(marker.evaluate(environment) for environment in environments):
                queue.append(text)
    return found


def test_torch_is_pinned_and_torchvision_stays_out(pins):
    assert pins["torch"] == "2.13.0"
    assert "torchvision" not in pins


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="constraints.txt was written on Python 3.11")
def test_pins_are_complete(pins, needed):
    assert not needed - set(pins), "needed, but free to change"
    assert not set(pins) - needed - TOOLS, "pinned, but needed by nothing"


def test_environment_obeys(pins, needed):
    def public(version):
        return Version(version).public  # 2.13.0+cpu is a build of 2.13.0

    installed = {name: public(importlib.metadata.version(name)) for name in needed & set(pins)}
    assert installed == {name: public(pins[name]) for name in installed}
