"""The built-in live page: static files that the collector serves, and `panels.json`, generated from the declarations.

No build step and no address outside the collector: plain HTML, CSS and ES modules, and uPlot vendored below `vendor/`.
"""

import json
from pathlib import Path
from typing import Any

from learnmech import laws, observables
from learnmech.dashboards import panels
from learnmech.dashboards.panels import Curve, Panel, View, notation

PANELS_FILE = "panels.json"

UPLOT_VERSION = "1.6.32"
UPLOT_SHA256 = {
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    "LICENSE": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
}
"""Checksums of the vendored files, as in the npm package `uplot` of that version."""


def folder() -> Path:
    """Return the folder of static files; the entry `live` of the entry-point group `learnmech.pages`."""
    return Path(__file__).parent / "static"


def declarations() -> dict[str, Any]:
    """Return what the page must know of the panels: texts, curves, symbols, the meaning of verdicts."""
    declared = panels.catalogue()
    return {
        "laws": [_panel(panel) for panel in declared if panel.view is View.RESIDUALS],
        "sections": [
            {"id": section.value, "title": title, "panels": [_panel(panel) for panel in panels.of(section)]}
            for section, title in panels.TITLES.items()
        ],
        "symbols": {
            observable.name: notation.data(notation.parse(observable.symbol))
            for observable in observables.catalogue()
            if observable.symbol
        },
        "verdicts": {verdict.value: verdict.sentence for verdict in laws.Verdict},
    }


def panels_json() -> str:
    """Return the text of `panels.json`."""
    return json.dumps(declarations(), ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def _error(panel: Panel) -> str:
    """Say what the error band of a panel is, in its legend's words."""
    gauge = laws.get(panel.name).measures[0] if panel.view is View.RESIDUALS else panel.name
    residual = observables.get(gauge).error is observables.Error.RESIDUAL
    return "± residual bound" if residual else "± one standard error"


def _panel(panel: Panel) -> dict[str, Any]:
    text = panel.description
    written: dict[str, Any] = {
        "id": panel.id,
        "title": panel.title,
        "question": panel.question,
        "name": panel.name,
        "scope": panel.scope,
        "label": panel.label,
        "unit": panel.unit,
        "scale": panel.scale.value,
        "stepped": panel.stepped,
        "error": _error(panel),
        "rules": list(panel.rules),
        "curves": _curves(panel.curves),
        "signed": panel.signed,
        "fixed": panel.fixed,
        "rows": panel.rows,
        "lowest": panel.lowest,
        "layers": [
            {"role": f"layer_{number}", "label": layer.label, "look": layer.look.value, "error": layer.error}
            for number, layer in enumerate(panel.layers, start=1)
        ],
        "intervals": [
            {"role": f"interval_{number}", "label": interval.label, "strength": interval.strength}
            for number, interval in enumerate(panel.intervals, start=1)
        ],
        "parts": [
            {"name": part.observable, "scope": part.scope, "curves": _curves(part.curves)} for part in panel.parts
        ],
        "formula": notation.data(notation.parse(text.formula)),
        "shows": text.shows,
        "fails": text.fails,
        "source": text.source,
    }
    if panel.reference is not None:
        reference = panel.reference
        written["reference"] = {
            "name": reference.observable,
            "scope": reference.scope,
            "label": reference.label,
            "over": reference.over,
        }
    if panel.companion is not None:
        written["companion"] = _panel(panel.companion)
    return written


def _curves(curves: tuple[Curve, ...]) -> list[dict[str, Any]]:
    return [
        {"role": str(c.role), "column": c.column, "error": c.error, "sign": c.sign, "divisor": c.divisor}
        for c in curves
    ]
