"""Field configuration: how each role of each slot looks, and how verdicts are coloured."""

from typing import Any

from learnmech.dashboards.grafana.names import AXIS_LABELS, COLOURS, UNITS, VERDICT_COLOURS
from learnmech.dashboards.panels import Panel, Role

_DASH = {"fill": "dash", "dash": [8, 6]}


def column(slot: int, role: Role) -> str:
    """Return the name of the column that a query makes for a role of a slot."""
    return f"{slot}:{role}"


def curves(panel: Panel, roles: tuple[Role, ...], *, log: bool, predicted: str = "predicted") -> dict[str, Any]:
    """Return the field configuration of a Trend panel."""
    overrides = [
        {
            "matcher": {"id": "byName", "options": column(slot, role)},
            "properties": _look(panel, slot, role, colour, predicted),
        }
        for slot, colour in enumerate(COLOURS, start=1)
        for role in roles
    ]
    return {
        "defaults": {
            "unit": UNITS[panel.unit],
            "color": {"mode": "palette-classic"},
            "custom": {
                **_BASE,
                "axisLabel": AXIS_LABELS.get(panel.unit, ""),
                "scaleDistribution": {"type": "log", "log": 10} if log else {"type": "linear"},
            },
        },
        "overrides": overrides,
    }


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
    run = f"${{slot_{slot}}}"
    properties = [_property("color", {"mode": "fixed", "fixedColor": colour})]
    if role is Role.MEASURED:
        properties.append(_property("displayName", run))
        properties.append(_property("custom.showPoints", "auto"))
    elif role is Role.PREDICTED:
        properties.append(_property("displayName", f"{run} {predicted}"))
        properties.append(_property("custom.lineStyle", _DASH))
        properties.append(_property("custom.lineWidth", 1))
        if panel.stepped:
            properties.append(_property("custom.lineInterpolation", "stepAfter"))
    else:
        properties.append(_property("custom.lineWidth", 0))
        properties.append(_property("custom.hideFrom", {"legend": True, "tooltip": True, "viz": False}))
        if role is Role.UPPER:
            properties.append(_property("custom.fillBelowTo", column(slot, Role.LOWER)))
            properties.append(_property("custom.fillOpacity", 18))
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


def _property(name: str, value: Any) -> dict[str, Any]:
    return {"id": name, "value": value}
