"""`/docs`: the interface as one plain page, written from OpenAPI; no script, nothing from elsewhere."""

import json
from collections.abc import Iterator
from html import escape
from typing import Any

_METHODS = ("get", "post", "put", "delete")


def render(openapi: dict[str, Any]) -> str:
    """Return the page for an OpenAPI document."""
    info = openapi["info"]
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(info['title'])}</title></head><body>",
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>",
        *_paragraphs(info.get("description", "")),
        '<p>For programs: <a href="openapi.json">openapi.json</a></p>',
    ]
    for path, operations in openapi["paths"].items():
        for method in _METHODS:
            if method in operations:
                parts.extend(_operation(f"{method.upper()} {path}", operations[method]))
    parts.append("<h2>Messages</h2>")
    for name, schema in sorted(openapi.get("components", {}).get("schemas", {}).items()):
        parts.append(f'<h3 id="{escape(name)}">{escape(name)}</h3>')
        parts.extend(_paragraphs(schema.get("description", "").partition("\n\n")[0]))
        parts.append(f"<pre>{escape(json.dumps(schema.get('properties', schema), indent=1))}</pre>")
    parts.append("</body></html>")
    return "\n".join(parts)


def _operation(title: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"<h2><code>{escape(title)}</code></h2>"
    yield from _paragraphs(operation.get("description", ""))
    parameters = operation.get("parameters", [])
    if parameters:
        yield "<dl>"
        for parameter in parameters:
            default = parameter.get("schema", {}).get("default")
            suffix = "" if default is None else f" (default {json.dumps(default)})"
            yield f"<dt><code>{escape(parameter['name'])}</code> in {escape(parameter['in'])}{escape(suffix)}</dt>"
            yield f"<dd>{escape(parameter.get('description', ''))}</dd>"
        yield "</dl>"
    body = operation.get("requestBody", {}).get("content", {})
    if body:
        yield f"<p>Body: {_reference(body)} as {escape(' or '.join(body))}</p>"
    answer = operation.get("responses", {}).get("200", {}).get("content", {})
    if _reference(answer):
        yield f"<p>Answer: {_reference(answer)}</p>"


def _reference(content: dict[str, Any]) -> str:
    for media in content.values():
        name = media.get("schema", {}).get("$ref", "").rpartition("/")[2]
        if name:
            return f'<a href="#{escape(name)}">{escape(name)}</a>'
    return ""


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in text.split("\n\n"):
        if paragraph.strip():
            yield f"<p>{escape(paragraph.strip())}</p>"
