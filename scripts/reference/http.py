"""The HTTP interface, from the OpenAPI document of the service itself."""

import json
import tempfile
from pathlib import Path
from typing import Any

from scripts.reference import pages


def document() -> dict[str, Any]:
    """Return the OpenAPI document of a service over an empty store."""
    from learnmech.collector.service.app import create_app
    from learnmech.collector.service.settings import Settings
    from learnmech.collector.store import Store

    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(f"sqlite:///{Path(folder) / 'empty.db'}")
        try:
            return create_app(Settings(), store).openapi()
        finally:
            store.close()


def page() -> str:
    """Return one section for each operation."""
    lines = [
        "# HTTP interface",
        "",
        "What `learnmech collect` answers; the whole document is at `/openapi.json`, readable at `/docs`.",
    ]
    for path, operations in document()["paths"].items():
        for method, operation in operations.items():
            lines += [
                "",
                f"## {method.upper()} {path}",
                "",
                operation.get("description") or operation.get("summary", ""),
            ]
            rows = [_row(parameter) for parameter in operation.get("parameters", [])]
            if rows:
                lines += ["", *pages.table(("parameter", "in", "default", "meaning"), rows)]
    return "\n".join(lines)


def _row(parameter: dict[str, Any]) -> tuple[str, str, str, str]:
    default = parameter.get("schema", {}).get("default")
    shown = "" if default is None else f"`{json.dumps(default)}`"
    return f"`{parameter['name']}`", parameter["in"], shown, parameter.get("description", "")
