"""How the layers and intervals of a panel look in Grafana: columns and their properties, by slot."""

from collections.abc import Iterator
from typing import Any

from learnmech.dashboards.grafana.overrides import DASH, DOTS, NOT_LISTED, colour, column, edge, setting
from learnmech.dashboards.panels import Layer, Look, Panel, Role

ERROR_OPACITY = 18
"""Per cent, of the error band around a layer: as that of the measured one."""


def looks(panel: Panel, slot: int, code: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield each column of the further series of a slot, in drawing order, with its properties."""
    for number, interval in enumerate(panel.intervals, start=1):
        upper, lower = (column(slot, f"interval_{number}_{end}") for end in (Role.UPPER, Role.LOWER))
        yield upper, edge(code, below=lower, opacity=round(100 * interval.strength))
        yield lower, edge(code)
    for number, layer in enumerate(panel.layers, start=1):
        key = f"layer_{number}"
        if layer.error:
            upper, lower = (column(slot, f"{key}_{end}") for end in (Role.UPPER, Role.LOWER))
            yield upper, edge(code, below=lower, opacity=ERROR_OPACITY)
            yield lower, edge(code)
        yield column(slot, key), _line(layer, slot, code)


def _line(layer: Layer, slot: int, code: str) -> list[dict[str, Any]]:
    properties = [
        colour(code),
        setting("displayName", f"${{slot_{slot}}} {layer.label}"),
        setting("custom.lineWidth", 1),
    ]
    if layer.look is Look.DASHED:
        properties.append(setting("custom.lineStyle", DASH))
    if layer.look is Look.DOTTED:
        properties.append(setting("custom.lineStyle", DOTS))
    if layer.look is Look.FAINT:
        properties.append(setting("custom.hideFrom", {**NOT_LISTED, "tooltip": False}))
    return properties
