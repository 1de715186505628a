"""The panels, declared once. Grafana's JSON and the built-in page are both made from these.

>>> [panel.id for panel in catalogue() if panel.companion]
['edge_of_stability', 'gradient_noise_scale', 'rotational_equilibrium']
>>> [panel.id for panel in catalogue() if not panel.companion]
['loss', 'noise_scale', 'weight_norm', 'overhead']
"""

from learnmech.dashboards.panels import laws, training
from learnmech.dashboards.panels.declaration import Curve, Description, Panel, Reference, Role, View

RUN_COLOURS = ("#0072b2", "#d55e00", "#00916a", "#b0528e", "#b58300", "#3da0dc", "#7d3c98", "#5f6b7a")
"""Colours of runs, by slot: Okabe and Ito's palette, which colour-blind readers can tell apart, for a white page."""


class UnknownPanel(ValueError):
    """A panel that nobody has declared."""


def catalogue() -> tuple[Panel, ...]:
    """Return every panel, laws first; a companion comes with its panel."""
    return (*laws.panels(), *training.panels())


def get(panel_id: str) -> Panel:
    """Return the panel with this id.

    Raises:
        UnknownPanel: There is none.
    """
    for panel in catalogue():
        if panel.id == panel_id:
            return panel
    raise UnknownPanel(f"unknown panel {panel_id!r}: the panels are {', '.join(panel.id for panel in catalogue())}")


__all__ = [
    "RUN_COLOURS",
    "Curve",
    "Description",
    "Panel",
    "Reference",
    "Role",
    "UnknownPanel",
    "View",
    "catalogue",
    "get",
]
