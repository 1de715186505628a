"""`docs/hazards.md`: every hazard has a test that exists, and every module of the zoo is listed with what it shows."""

import ast
import re
from pathlib import Path

import pytest

HAZARDS = 37
ZOO = 25
"""Nasty modules there must be at least."""

NAMED = re.compile(r"`([\w/]+\.py)::(test_\w+)`")


@pytest.fixture(scope="module")
def text(repository: Path) -> str:
    return (repository / "docs" / "hazards.md").read_text(encoding="utf-8")


def named_in(path: Path) -> dict[str, set[str]]:
    """The tests of a file by name, each with its arguments."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    return {node.name: {argument.arg for argument in node.args.args} for node in functions}


def rows(text: str, title: str) -> list[list[str]]:
    """The rows of the table under a title, as lists of cells."""
    section = text.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def folder(row: list[str], repository: Path, title: str) -> Path:
    return repository / "tests" / ("probes/zoo" if title == "The zoo" else "")


@pytest.mark.parametrize("title", ["The hazards", "Faults", "The zoo"])
def test_every_test_that_is_named_exists(title, text, repository):
    for row in rows(text, title):
        named = NAMED.findall(row[-1])
        assert named, f"no test for: {row}"
        for file, test in named:
            path = folder(row, repository, title) / file
            assert path.is_file(), f"{path} of: {row}"
            assert test in named_in(path), f"no {test} in {path}"


def test_every_hazard_has_a_row(text):
    assert [row[0] for row in rows(text, "The hazards")] == [str(number + 1) for number in range(HAZARDS)]


def test_every_module_of_the_zoo_is_listed_with_what_it_shows(text, repository):
    """What the table says a module shows is what its test asks for."""
    listed = {(file, test): row[1] for row in rows(text, "The zoo") for file, test in NAMED.findall(row[-1])}
    assert len(listed) >= ZOO
    found = {}
    for path in sorted((repository / "tests" / "probes" / "zoo").glob("test_*.py")):
        found |= {(path.name, test): arguments for test, arguments in named_in(path).items()}
    del found["test_comparison.py", "test_the_comparison_can_fail"]
    assert set(listed) == set(found)
    for key, arguments in found.items():
        assert "monitored" in arguments or key[1] == "test_state_outside_the_module_is_found_out", key
        if "passed" in arguments:
            assert listed[key] == "measured", key
        if "refused" in arguments:
            assert listed[key] == "refused", key
