"""The environment variables, from the places where components declare what they read.

Read from the syntax tree, so that a page about settings needs no import of torch or of a server.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from scripts.reference import pages

COMPONENTS = ("core", "probes", "collector", "dashboards", "lab")
NAME = re.compile(r"LEARNMECH_[A-Z][A-Z_]*")


def modules(root: Path) -> Iterator[tuple[str, ast.Module]]:
    """Yield every module of the components with its import name."""
    for component in COMPONENTS:
        for path in sorted((root / component / "learnmech").rglob("*.py")):
            parts = path.relative_to(root / component).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            yield name, ast.parse(path.read_text(encoding="utf-8"), str(path))


def read(root: Path) -> dict[str, dict[str, str]]:
    """Return, for each variable, its description by the module that reads it.

    A module declares what it reads in a mapping `ENVIRONMENT` of names to descriptions, or as a constant
    `NAME = "LEARNMECH_..."`, described by the string below it unless another module describes the same variable.
    """
    found: dict[str, dict[str, str]] = {}
    for module, tree in modules(root):
        for node, following in zip(tree.body, [*tree.body[1:], None], strict=True):
            for name, description in _declared(node, following):
                found.setdefault(name, {})[module] = description
    return found


def _declared(node: ast.stmt, following: ast.stmt | None) -> Iterator[tuple[str, str]]:
    if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
        return
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    if any(isinstance(target, ast.Name) and target.id == "ENVIRONMENT" for target in targets):
        yield from ast.literal_eval(node.value).items()
    elif isinstance(node.value, ast.Constant) and NAME.fullmatch(str(node.value.value)):
        below = ""
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            below = str(following.value.value)
        yield str(node.value.value), below


def mentioned(root: Path) -> dict[str, set[str]]:
    """Return the modules in which each variable's name stands as a string of its own."""
    found: dict[str, set[str]] = {}
    for module, tree in modules(root):
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and NAME.fullmatch(node.value):
                found.setdefault(node.value, set()).add(module)
    return found


def page(root: Path) -> str:
    """Return the variables, each with who reads it.

    Raises:
        LookupError: A variable stands in the code and is described nowhere, so nothing could be said of it.
    """
    readers, places = read(root), mentioned(root)
    meanings = {name: " ".join(filter(None, dict.fromkeys(by_module.values()))) for name, by_module in readers.items()}
    if silent := {name: sorted(where) for name, where in places.items() if not meanings.get(name)}:
        raise LookupError(f"describe these in an ENVIRONMENT mapping, or below their constants: {silent}")
    rows = ((f"`{name}`", meanings[name], pages.code(_components(readers[name]))) for name in sorted(meanings))
    lines = [
        "# Settings",
        "",
        "Environment variables; an option or an argument in code wins over its variable.",
        "",
        *pages.table(("variable", "meaning", "read by"), rows),
    ]
    return "\n".join(lines)


def _components(by_module: dict[str, str]) -> list[str]:
    return sorted({".".join(module.split(".")[:2]) for module in by_module})
