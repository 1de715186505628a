"""What a component imports, its extra declares: what merely happens to be installed may be gone tomorrow."""

import ast
import importlib.metadata
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# Extras whose declarations a component may rely on, beside the base.
MAY_USE = {
    "core": [],
    "probes": ["probes"],
    "collector": ["collector", "postgres"],
    "dashboards": ["dashboards"],
    "lab": ["lab", "probes", "collector"],
}
# The adapter for a framework is used where the framework is; the extra for any loop does not bring it.
BROUGHT_BY_THE_USER = {"probes": {"pytorch-lightning", "lightning", "transformers"}}


def imports(folder):
    """The top-level names that the modules of a folder import, wherever in the file, and one place for each."""
    found = {}
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            else:
                continue
            found |= {name.partition(".")[0]: f"{path}:{node.lineno}" for name in names}
    return found


@pytest.mark.parametrize("component", list(MAY_USE))
def test_imports_are_declared(component, repository):
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [
        *project["dependencies"],
        *(t for extra in MAY_USE[component] for t in project["optional-dependencies"][extra]),
    ]
    declared = {canonicalize_name(Requirement(text).name) for text in texts} | BROUGHT_BY_THE_USER.get(component, set())
    distributions = importlib.metadata.packages_distributions()
    undeclared = {
        name: place
        for name, place in imports(repository / component / "learnmech").items()
        if name not in sys.stdlib_module_names and name != "learnmech"
        if not {canonicalize_name(found) for found in distributions.get(name, [])} & declared
    }
    assert not undeclared


@pytest.mark.parametrize("component", [component for component in MAY_USE if MAY_USE[component]])
def test_declarations_are_imported(component, repository):
    """A dependency that nothing imports is a burden on everybody who installs it."""
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {canonicalize_name(Requirement(text).name) for text in project["optional-dependencies"][component]}
    distributions = importlib.metadata.packages_distributions()
    used = {
        canonicalize_name(distribution)
        for name in imports(repository / component / "learnmech")
        for distribution in distributions.get(name, [])
    }
    assert not wanted - used - {"learnmech"}
