"""The panels, declared once. Grafana's JSON and the built-in page are both made from these.

>>> [panel.id for panel in catalogue() if panel.companion]
['edge_of_stability', 'gradient_noise_scale', 'rotational_equilibrium']
>>> [panel.id for panel in of(Section.TRAINING)]
['loss', 'grad_norm']
>>> [panel.id for panel in of(Section.CURVATURE)][:3]
['batch_sharpness', 'critical_step', 'curvature_share']
"""

from learnmech.dashboards.panels import curvature, laws, noise, training, weights
from learnmech.dashboards.panels.declaration import (
    Curve,
    Description,
    Interval,
    Layer,
    Look,
    Panel,
    Part,
    Reference,
    Role,
    Section,
    View,
)

RUN_COLOURS = ("#0072b2", "#d55e00", "#00916a", "#b0528e", "#b58300", "#3da0dc", "#7d3c98", "#5f6b7a")
"""Colours of runs, by slot: Okabe and Ito's palette, which colour-blind readers can tell apart, for a white page."""

TITLES = {
    Section.TRAINING: "Training",
    Section.NOISE: "Gradient noise",
    Section.WEIGHTS: "Weights",
    Section.SYMMETRIES: "Symmetries",
    Section.CURVATURE: "Curvature",
    Section.COST: "What it costs",
}
"""The sections, in the order in which they are read."""


class UnknownPanel(ValueError):
    """A panel that nobody has declared."""


def catalogue() -> tuple[Panel, ...]:
    """Return every panel, laws first; a companion comes with its panel."""
    return (
        *laws.panels(),
        *training.panels(),
        *noise.panels(),
        *weights.panels(),
        *weights.symmetries(),
        *curvature.panels(),
        *training.cost(),
    )


def of(section: Section) -> tuple[Panel, ...]:
    """Return the panels of observables that belong to a section."""
    return tuple(panel for panel in catalogue() if panel.view is View.OBSERVATIONS and panel.section is section)


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
    "TITLES",
    "Curve",
    "Description",
    "Interval",
    "Layer",
    "Look",
    "Panel",
    "Part",
    "Reference",
    "Role",
    "Section",
    "UnknownPanel",
    "View",
    "catalogue",
    "get",
    "of",
]
