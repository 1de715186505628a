"""Code in the documentation: run it, or check that what it names exists."""

import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from scripts.docs_check import shell
from scripts.docs_check.markdown import Block, Document

PATIENCE = 300
"""Seconds that the code of one document may take."""

PROSE = frozenset({"text", "mermaid", "diff"})
"""Languages in which nothing can be wrong that a program would see."""

SHELL = frozenset({"bash", "sh", "console", "shell"})
PARSERS: dict[str, Callable[[str], object]] = {"json": json.loads, "toml": tomllib.loads, "yaml": yaml.safe_load}


def problems(document: Document, root: Path) -> Iterator[str]:
    """Yield a sentence for each block of a document that does not do what it shows."""
    runnable = []
    for block in document.blocks:
        found = list(_static(block, root))
        yield from found
        if block.language in ("python", "sql") and not block.not_run and not found:
            runnable.append(block)
    if runnable:
        yield from _run(document, runnable, root)


def _static(block: Block, root: Path) -> Iterator[str]:
    if block.language in SHELL:
        yield from (f"{block}: {problem}" for problem in shell.problems(block.text, root))
    elif block.language in PARSERS:
        try:
            PARSERS[block.language](block.text)
        except (ValueError, yaml.YAMLError) as error:
            yield f"{block}: not {block.language}: {error}"
    elif block.language == "python":
        try:
            compile(block.text, str(block), "exec")
        except SyntaxError as error:
            yield f"{block}: {error}"
    elif block.language != "sql" and block.language not in PROSE:
        known = ", ".join(sorted({"python", "sql", *SHELL, *PARSERS, *PROSE}))
        said = block.language or "nothing"
        yield f"{block}: the fence says {said!r}; expected one of {known}, which can be checked"


def _run(document: Document, blocks: list[Block], root: Path) -> Iterator[str]:
    """Run a document's blocks in order, in one process and one empty folder, as a reader would."""
    steps = [
        {
            "place": str(block),
            "language": block.language,
            "text": block.text,
            "after": str(root / block.after) if block.after else "",
        }
        for block in blocks
    ]
    with tempfile.TemporaryDirectory() as folder:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LEARNMECH_")}
        try:
            done = subprocess.run(
                [sys.executable, str(Path(__file__).with_name("runner.py"))],
                input=json.dumps(steps),
                cwd=folder,
                env=environment | {"OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
        except subprocess.TimeoutExpired:
            yield f"{document.path}: its code ran longer than {PATIENCE} s"
            return
    if done.returncode != 0:
        yield f"{document.path}: {done.stderr.strip() or f'its code ended the interpreter with {done.returncode}'}"
