"""The traps of a namespace split over folders, and the shape of the tree."""

import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

COMPONENTS = ("core", "probes", "collector", "dashboards", "lab")
MOST_LINES = 400


@pytest.fixture(scope="module")
def declaration(repository: Path) -> dict:
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tree(repository: Path) -> list[Path]:
    """The files that are, or would be, committed."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=repository, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [path for name in listed.stdout.split("\0") if name and (path := repository / name).is_file()]


def portions(repository: Path) -> dict[str, Path]:
    """The sub-packages of the namespace and where each lies."""
    found = {}
    for component in COMPONENTS:
        for folder in (repository / component / "learnmech").iterdir():
            if folder.is_dir() and folder.name != "__pycache__":
                assert folder.name not in found, f"learnmech.{folder.name} lies in two components"
                found[folder.name] = folder
    return found


def test_components_exist(repository):
    found = portions(repository)
    assert set(found) == {"observables", "wire", "laws", "sinks", "cli", "probes", "collector", "dashboards", "lab"}


@pytest.mark.parametrize("component", COMPONENTS)
def test_no_init_in_the_namespace(component, repository):
    """One `__init__.py` there would hide every other component."""
    assert not list((repository / component / "learnmech").glob("__init__.py*"))
    assert not (repository / component / "__init__.py").exists()


def test_portions_are_typed_packages(repository):
    for folder in portions(repository).values():
        assert (folder / "__init__.py").is_file(), folder
        assert (folder / "py.typed").is_file(), folder


def test_every_folder_with_code_is_a_package(repository):
    for portion in portions(repository).values():
        folders = {file.parent for file in portion.rglob("*.py")}
        lacking = [folder for folder in folders if not (folder / "__init__.py").exists()]
        # Alembic loads its scripts by path; they are no modules.
        assert not [folder for folder in lacking if "migrations" not in folder.parts]


def test_every_list_of_components_is_complete(declaration):
    """Each tool has its own list; one left out is silently not checked, not shipped or not importable."""
    build, tool = declaration["tool"]["hatch"]["build"], declaration["tool"]
    assert tuple(build["dev-mode-dirs"]) == COMPONENTS
    assert build["targets"]["wheel"]["packages"] == [f"{component}/learnmech" for component in COMPONENTS]
    assert set(COMPONENTS) <= set(tool["mypy"]["files"])
    assert {path.rpartition("/")[2] for path in tool["mypy"]["mypy_path"]} == set(COMPONENTS)
    assert set(COMPONENTS) <= set(tool["pyright"]["include"])
    assert set(COMPONENTS) <= set(tool["pyright"]["extraPaths"])
    assert set(COMPONENTS) <= set(tool["ruff"]["src"])


def test_import_rules_cover_every_portion(declaration, repository):
    rules = declaration["tool"]["importlinter"]
    assert set(rules["root_packages"]) == {f"learnmech.{name}" for name in portions(repository)}
    ruled = {module for contract in rules["contracts"] for module in contract.get("source_modules", [])}
    assert ruled == set(rules["root_packages"])


def test_no_pins_at_run_time(declaration):
    """A library that pins breaks the environment it is installed into; exact versions live in constraints.txt."""
    project = declaration["project"]
    declared = [
        *project["dependencies"],
        *(text for extra in project["optional-dependencies"].values() for text in extra),
    ]
    for text in declared:
        requirement = Requirement(text)
        if requirement.name == "learnmech":
            continue
        operators = {specifier.operator for specifier in requirement.specifier}
        assert ">=" in operators, f"{text} has no lower bound"
        assert not operators & {"==", "===", "~="}, f"{text} is a pin"


def test_files_hold_one_idea(tree, repository):
    large = {
        str(path.relative_to(repository)): lines
        for path in tree
        if path.suffix in (".py", ".js", ".css") and "vendor" not in path.parts
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES
    }
    assert not large, f"more than {MOST_LINES} lines: split them by idea"


def test_wheel_is_complete(wheel_files, tree, repository):
    """Every committed file of a component ships at its import path: code, types, migrations, page files."""
    expected = {
        str(path.relative_to(repository / component))
        for component in COMPONENTS
        for path in tree
        if path.is_relative_to(repository / component / "learnmech")
    }
    shipped = {name for name in wheel_files if not name.split("/")[0].endswith(".dist-info")}
    assert shipped == expected


def test_wheel_has_what_runs_need_beside_code(wheel_files):
    def some(prefix: str, suffix: str) -> list[str]:
        return [name for name in wheel_files if name.startswith(prefix) and name.endswith(suffix)]

    typed = {name.split("/")[1] for name in some("learnmech/", "/py.typed") if name.count("/") == 2}
    assert typed == {"observables", "wire", "laws", "sinks", "cli", "probes", "collector", "dashboards", "lab"}
    assert some("learnmech/collector/", "/env.py")
    assert [name for name in some("learnmech/collector/", ".py") if "/versions/" in name]
    for suffix in (".html", ".js", ".css"):
        assert some("learnmech/dashboards/", suffix)
    assert [name for name in wheel_files if name.endswith(".dist-info/licenses/LICENSE")]
    assert [name for name in wheel_files if "uplot" in name.lower() and "LICENSE" in name], (
        "uPlot ships with its licence"
    )
