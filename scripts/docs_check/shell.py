"""Commands in the documentation: the syntax is the shell's, and what they name exists."""

import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import typer.main

from learnmech.cli import build

EXTRAS = re.compile(r"learnmech\[([a-z,]+)\]")
SEPARATORS = frozenset({"&&", "||", ";", "|", "&"})


def problems(text: str, root: Path) -> Iterator[str]:
    """Yield a sentence for each command that would not work."""
    script = "\n".join(_typed(text))
    parsed = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    if parsed.returncode != 0:
        yield f"not a shell script: {parsed.stderr.strip()}"
        return
    for line in script.replace("\\\n", " ").splitlines():
        for command in _commands(line):
            yield from _check(command, root)


def _typed(text: str) -> list[str]:
    """The lines that a person types: all, or those after a prompt where the block shows one."""
    lines = text.splitlines()
    if any(line.startswith("$ ") for line in lines):
        return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return lines


def _commands(line: str) -> Iterator[list[str]]:
    words: list[str] = []
    for word in shlex.split(line, comments=True):
        if word in SEPARATORS:
            yield words
            words = []
        elif words or "=" not in word.split("/")[0]:  # variables set for the command come before it
            words.append(word)
    yield words


def _check(words: list[str], root: Path) -> Iterator[str]:
    match words:
        case ["learnmech", *rest]:
            yield from _learnmech(rest)
        case ["make", *targets]:
            for target in targets:
                if "=" not in target and target not in _targets(root):
                    yield f"make {target}: no such target; make help lists them"
        case ["pip" | "pip3", "install", *wanted]:
            for extra in {extra for word in wanted for found in EXTRAS.findall(word) for extra in found.split(",")}:
                if extra not in _extras(root):
                    yield f"pip install: there is no extra {extra!r}; expected {', '.join(sorted(_extras(root)))}"
        case ["python", file, *_] if file.endswith(".py") and "/" in file and not (root / file).exists():
            yield f"python {file}: no such file"


def _learnmech(words: list[str]) -> Iterator[str]:
    """Walk down the command tree, then look at every option."""
    command, said = _application(), "learnmech"
    words = list(words)
    while words and not words[0].startswith("-") and getattr(command, "commands", None):
        name = words.pop(0)
        if name not in command.commands:
            yield f"{said} {name}: no such command; expected one of {', '.join(sorted(command.commands))}"
            return
        command, said = command.commands[name], f"{said} {name}"
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {
        "--help"
    }
    for word in words:
        if word.startswith("--") and word.partition("=")[0] not in options:
            yield f"{said}: no option {word.partition('=')[0]}; expected one of {', '.join(sorted(options))}"


@cache
def _application() -> Any:
    return typer.main.get_command(build())


@cache
def _targets(root: Path) -> frozenset[str]:
    return frozenset(re.findall(r"^([a-z-]+):.*## ", (root / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


@cache
def _extras(root: Path) -> frozenset[str]:
    declaration = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    return frozenset(declaration["project"]["optional-dependencies"])
