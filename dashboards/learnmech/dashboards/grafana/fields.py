"""Field configuration: how each role of each slot looks, and how verdicts are coloured."""

from typing import Any

from learnmech.dashboards.grafana import further
from learnmech.dashboards.grafana.names import AXIS_LABELS, COLOURS, UNITS, VERDICT_COLOURS
from learnmech.dashboards.grafana.overrides import DASH, column, edge, setting
from learnmech.dashboards.grafana.overrides import colour as coloured
from learnmech.dashboards.panels import Panel, Role


def curves(panel: Panel, roles: tuple[Role, ...], *, log: bool, predicted: str = "predicted") -> dict[str, Any]:
    """Return the field configuration of a Trend panel."""
    slots = list(enumerate(COLOURS, start=1))
    looks = [
        look
        for slot, colour in slots
        for look in (
            *further.looks(panel, slot, colour),
            *((column(slot, role), _look(panel, slot, role, colour, predicted)) for role in roles),
        )
    ]
    defaults: dict[str, Any] = {
        "unit": UNITS[panel.unit],
        "color": {"mode": "palette-classic"},
        "custom": {
            **_BASE,
            "axisLabel": AXIS_LABELS.get(panel.unit, ""),
            "scaleDistribution": _distribution(panel, log=log),
        },
    }
    if panel.rules:
        defaults["custom"]["thresholdsStyle"] = {"mode": "dashed"}
        defaults["thresholds"] = {
            "mode": "absolute",
            "steps": [{"color": "transparent", "value": None}, *({"color": RULE, "value": y} for y in panel.rules)],
        }
    return {
        "defaults": defaults,
        "overrides": [
            {"matcher": {"id": "byName", "options": name}, "properties": properties} for name, properties in looks
        ],
    }


RULE = "#5f6b7a"
"""Colour of a fixed line: that of no run that is drawn, seen on a white and on a dark page."""


def _distribution(panel: Panel, *, log: bool) -> dict[str, Any]:
    if not log:
        return {"type": "linear"}
    return (
        {"type": "symlog", "log": 10, "linearThreshold": panel.linear} if panel.signed else {"type": "log", "log": 10}
    )


_BASE: dict[str, Any] = {
    "axisBorderShow": False,
    "axisCenteredZero": False,
    "axisColorMode": "text",
    "axisPlacement": "auto",
    "drawStyle": "line",
    "fillOpacity": 0,
    "gradientMode": "none",
    "hideFrom": {"legend": False, "tooltip": False, "viz": False},
    "insertNulls": False,
    "lineInterpolation": "linear",
    "lineWidth": 2,
    "pointSize": 4,
    "showPoints": "never",
    "spanNulls": False,
    "stacking": {"group": "A", "mode": "none"},
    "thresholdsStyle": {"mode": "off"},
}


def _look(panel: Panel, slot: int, role: Role, colour: str, predicted: str) -> list[dict[str, Any]]:
    if role is Role.UPPER:
        return edge(colour, below=column(slot, Role.LOWER), opacity=further.ERROR_OPACITY)
    if role not in (Role.MEASURED, Role.PREDICTED):
        return edge(colour)
    run = f"${{slot_{slot}}}"
    if role is Role.MEASURED:
        name = f"{run} {panel.label}" if panel.label else run
        return [coloured(colour), setting("displayName", name), setting("custom.showPoints", "auto")]
    properties = [
        coloured(colour),
        setting("displayName", f"{run} {predicted}"),
        setting("custom.lineStyle", DASH),
        setting("custom.lineWidth", 1),
    ]
    if panel.stepped:
        properties.append(setting("custom.lineInterpolation", "stepAfter"))
    return properties


def ratio(panel: Panel, roles: tuple[Role, ...], lower: float, upper: float) -> dict[str, Any]:
    """Return the field configuration of a companion panel: a line at 1 and the law's tolerance as a shaded band."""
    config = curves(panel, roles, log=False)
    config["defaults"]["custom"]["thresholdsStyle"] = {"mode": "dashed+area"}
    config["defaults"]["custom"]["axisSoftMin"] = 0
    config["defaults"]["decimals"] = 3
    config["defaults"]["thresholds"] = {
        "mode": "absolute",
        "steps": [
            {"color": "transparent", "value": None},
            {"color": "rgba(120, 135, 155, 0.25)", "value": lower},
            {"color": "rgba(120, 135, 155, 0.25)", "value": 1.0},
            {"color": "transparent", "value": upper},
        ],
    }
    return config


def verdicts() -> list[dict[str, Any]]:
    """Map verdicts to colours; the text stays the verdict."""
    options = {
        verdict: {"color": colour, "index": index, "text": verdict.replace("_", " ")}
        for index, (verdict, colour) in enumerate(VERDICT_COLOURS.items())
    }
    return [{"type": "value", "options": options}]


def statuses() -> list[dict[str, Any]]:
    """Map run statuses to the colours of the verdicts that call for the same attention."""
    colours = {"running": "holds", "finished": "not_applicable", "stalled": "undetermined", "failed": "deviates"}
    options = {
        status: {"color": VERDICT_COLOURS[verdict], "index": index, "text": status}
        for index, (status, verdict) in enumerate(colours.items())
    }
    return [{"type": "value", "options": options}]
