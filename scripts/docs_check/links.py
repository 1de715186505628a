"""Links inside the repository resolve, to the heading."""

from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from scripts.docs_check.markdown import Document


def broken(document: Document, load: Callable[[Path], Document]) -> Iterator[str]:
    """Yield a sentence for each link that leads nowhere; links to other hosts are not followed.

    Args:
        document: The document whose links are followed.
        load: Parses another document, for its headings.
    """
    for link in document.links:
        parts = urlsplit(link.target)
        if parts.scheme or parts.netloc:
            continue
        place = f"{document.path}:{link.line}"
        if parts.path.startswith("/"):
            yield f"{place}: {link.target} is absolute; write it relative to this file"
            continue
        target = (document.path.parent / unquote(parts.path)).resolve() if parts.path else document.path
        if not target.exists():
            yield f"{place}: {link.target} does not exist"
        elif parts.fragment and target.suffix == ".md" and parts.fragment not in load(target).anchors:
            known = ", ".join(sorted(load(target).anchors)) or "none"
            yield f"{place}: {link.target} names no heading there; headings: {known}"
