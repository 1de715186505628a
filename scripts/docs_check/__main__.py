"""Check the documentation and say what was checked."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from scripts.docs_check import blocks, examples, links, tree
from scripts.docs_check.markdown import Document, parse

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Run every check; the exit status is 1 when one found something."""
    load = cache(parse)
    files = tree.files(ROOT)
    documents = [load(path) for path in files if path.suffix == ".md"]
    found = [
        *_documents(documents, load),
        *examples.problems(ROOT),
        *(problem for path in files for problem in tree.foreign(path, ROOT)),
    ]
    reference = subprocess.run([sys.executable, "-m", "scripts.reference", "--check"], cwd=ROOT, check=False).returncode

    shown = [block for document in documents for block in document.blocks]
    kept = [block for block in shown if block.not_run]
    for block in kept:
        print(f"not run: {_short(block)}: {block.not_run}")
    for problem in found:
        print(problem.replace(f"{ROOT}/", ""))
    print(
        f"{len(documents)} documents, {len(shown)} code blocks ({len(kept)} not run), "
        f"{sum(len(document.links) for document in documents)} links, "
        f"{len(examples.modules(ROOT))} modules with examples, {len(files)} files: {len(found)} problems"
    )
    return 1 if found or reference else 0


def _documents(documents: list[Document], load: Callable[[Path], Document]) -> Iterator[str]:
    for document in documents:
        yield from links.broken(document, load)
        yield from blocks.problems(document, ROOT)


def _short(place: object) -> str:
    return str(place).replace(f"{ROOT}/", "")


if __name__ == "__main__":
    sys.exit(main())
