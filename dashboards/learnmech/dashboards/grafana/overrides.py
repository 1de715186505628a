"""Pieces of field overrides: the name of the column that one is for, and one property of it."""

from typing import Any

DASH = {"fill": "dash", "dash": [8, 6]}
DOTS = {"fill": "dot", "dash": [2, 5]}
NOT_LISTED = {"legend": True, "tooltip": True, "viz": False}
"""Drawn, but neither in the legend nor under the cursor."""


def column(slot: int, role: str) -> str:
    """Return the name of the column that a query makes for a role of a slot."""
    return f"{slot}:{role}"


def setting(name: str, value: Any) -> dict[str, Any]:
    """Return one property of an override."""
    return {"id": name, "value": value}


def colour(code: str) -> dict[str, Any]:
    """Return the property that gives a column one colour."""
    return setting("color", {"mode": "fixed", "fixedColor": code})


def edge(code: str, *, below: str = "", opacity: int = 0) -> list[dict[str, Any]]:
    """Return the properties of an end of a band: no line, and at the upper end the fill down to `below`."""
    properties = [colour(code), setting("custom.lineWidth", 0), setting("custom.hideFrom", NOT_LISTED)]
    if below:
        properties += [setting("custom.fillBelowTo", below), setting("custom.fillOpacity", opacity)]
    return properties
