"""The built-in page: the static files of whoever is installed under the entry-point group `learnmech.pages`."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response

logger = logging.getLogger("learnmech.collector.service")

GROUP = "learnmech.pages"
"""Entry-point group; the entry `live` is a callable that returns the folder of the page's static files."""

# Declared here and not asked of the system: its table may call JavaScript text/plain, which `nosniff` then refuses.
CONTENT_TYPES: Mapping[str, str] = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".map": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
    ".txt": "text/plain; charset=utf-8",
    ".md": "text/plain; charset=utf-8",
}
_NO_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>learnmech collector</title></head>
<body><h1>learnmech collector</h1>
<p>The collector runs, but the live page is not installed beside it.</p>
<p>Type: <code>pip install 'learnmech[dashboards]'</code> and start the collector again.</p>
<p>The interface is described at <a href="docs">/docs</a>.</p></body></html>
"""


@dataclass(frozen=True)
class StaticFile:
    """A file of the page, read once.

    Attributes:
        body: Its bytes.
        media_type: Its Content-Type.
        etag: Strong entity tag: the hash of the bytes.
    """

    body: bytes
    media_type: str
    etag: str


def load(folder: Path) -> dict[str, StaticFile]:
    """Read every file below `folder` whose type is known, by its path with forward slashes.

    What is served is what was found here, so that no request path ever reaches the file system.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        media_type = CONTENT_TYPES.get(path.suffix.lower())
        if media_type and path.is_file():
            body = path.read_bytes()
            etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
            found[path.relative_to(folder).as_posix()] = StaticFile(body, media_type, etag)
    return found


def find() -> dict[str, StaticFile]:
    """Read the page that is installed; empty when there is none or it cannot be loaded."""
    entries: tuple[EntryPoint, ...] = tuple(entry_points(group=GROUP, name="live"))
    if not entries:
        return {}
    try:
        return load(Path(entries[0].load()()))
    except (ImportError, AttributeError, OSError) as error:
        # The page is a convenience: a collector that ingests without it beats one that does not start.
        logger.warning("the live page cannot be loaded (%s); pip install 'learnmech[dashboards]'", error)
        return {}


def page_router(files: Mapping[str, StaticFile]) -> APIRouter:
    """Serve `index.html` at `/` and every file below `/page/`."""
    router = APIRouter(include_in_schema=False)

    @router.api_route("/", methods=["GET", "HEAD"])
    async def index(request: Request) -> Response:
        if "index.html" not in files:
            return HTMLResponse(_NO_PAGE)
        return _serve(request, files["index.html"])

    @router.api_route("/page/{path:path}", methods=["GET", "HEAD"])
    async def static(request: Request, path: str) -> Response:
        if path not in files:
            raise HTTPException(404)
        return _serve(request, files[path])

    @router.api_route("/favicon.ico", methods=["GET", "HEAD"])
    async def favicon(request: Request) -> Response:
        return _serve(request, files["favicon.ico"]) if "favicon.ico" in files else Response(status_code=204)

    return router


def _serve(request: Request, file: StaticFile) -> Response:
    # Browsers ask each time and get 304: an upgraded collector never meets a page of the version before.
    headers = {"ETag": file.etag, "Cache-Control": "no-cache"}
    if _matches(request.headers.get("if-none-match", ""), file.etag):
        return Response(status_code=304, headers=headers)
    return Response(file.body, headers=headers, media_type=file.media_type)


def _matches(condition: str, etag: str) -> bool:
    tags = [tag.strip().removeprefix("W/") for tag in condition.split(",")]
    return etag in tags or "*" in tags
