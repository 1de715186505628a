"""Markdown documents as what the checks need of them: code blocks, links and headings."""

import re
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

_DIRECTIVE = re.compile(r"<!--\s*(?P<word>not run|after):\s*(?P<text>.+?)\s*-->", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of code.

    Attributes:
        document: The file it stands in.
        line: The line of its fence.
        language: First word after the fence.
        text: The code.
        not_run: Why it is not executed, from a comment `<!-- not run: REASON -->` before it; empty when it is.
        after: A script whose names it takes, from a comment `<!-- after: FILE -->` before it; empty for none.
    """

    document: Path
    line: int
    language: str
    text: str
    not_run: str = ""
    after: str = ""

    def __str__(self) -> str:
        """Return the place for an editor to jump to."""
        return f"{self.document}:{self.line}"


@dataclass(frozen=True)
class Link:
    """A link or an image and the line near which it stands."""

    document: Path
    line: int
    target: str


@dataclass(frozen=True)
class Document:
    """A parsed Markdown file."""

    path: Path
    blocks: tuple[Block, ...]
    links: tuple[Link, ...]
    anchors: frozenset[str]


def parse(path: Path) -> Document:
    """Parse a Markdown file."""
    tokens = MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8"))
    blocks, links, anchors = [], [], []
    directives: dict[str, str] = {}
    for position, token in enumerate(tokens):
        line = token.map[0] + 1 if token.map else 0
        if token.type == "html_block":
            directives = {found["word"]: found["text"] for found in _DIRECTIVE.finditer(token.content)}
            continue
        if token.type == "fence":
            language = token.info.split()[0] if token.info.strip() else ""
            why, after = directives.get("not run", ""), directives.get("after", "")
            blocks.append(Block(path, line, language, token.content, why, after))
        if token.type == "heading_open":
            anchors.append(slug(_text(tokens[position + 1])))
        for child in token.children or []:
            target = child.attrGet("href") or child.attrGet("src")
            if target:
                links.append(Link(path, line, str(target)))
        directives = {}
    return Document(path, tuple(blocks), tuple(links), frozenset(_numbered(anchors)))


def slug(heading: str) -> str:
    """Return the anchor that renderers give a heading: lower case, words joined by hyphens, punctuation dropped."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def _text(inline: Token) -> str:
    return "".join(child.content for child in inline.children or [] if child.type in ("text", "code_inline"))


def _numbered(anchors: list[str]) -> list[str]:
    """A heading that comes again gets -1, -2, ... appended."""
    seen: dict[str, int] = {}
    named = []
    for anchor in anchors:
        count = seen.get(anchor, 0)
        named.append(f"{anchor}-{count}" if count else anchor)
        seen[anchor] = count + 1
    return named
