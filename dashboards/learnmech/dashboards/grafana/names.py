"""Names that must agree between dashboards, provisioning files and compose: each is written once, here."""

from learnmech.dashboards.panels import RUN_COLOURS

SCHEMA_VERSION = 42
"""Of Grafana's classic dashboard JSON: loads on Grafana 11 to 13."""

POSTGRES_UID = "learnmech-postgres"
PROMETHEUS_UID = "learnmech-prometheus"
POSTGRES_TYPE = "grafana-postgresql-datasource"
PROMETHEUS_TYPE = "prometheus"

FOLDER = "learnmech"
FOLDER_UID = "learnmech"
TAG = "learnmech"

SLOTS = 6
"""Runs that a panel draws at once; the built-in page draws two more."""

COLOURS = RUN_COLOURS[:SLOTS]

WHOLE_MODEL = "whole model"
"""How the empty scope is called in a list: a variable's value cannot be empty."""

VERDICT_COLOURS = {
    "holds": "#0b7a5c",
    "deviates": "#b93a12",
    "undetermined": "#c99a2e",
    "sub_edge": "#5b8fd9",
    "not_applicable": "#8d98a6",
}
"""Colours of verdicts; the word stands beside the colour everywhere."""

UNITS = {"1": "none", "loss": "none", "loss^2": "none", "loss^3": "none", "examples": "none", "s": "s", "rad": "none"}
"""Grafana's unit for each unit of the vocabulary; where it has none of its own, the axis label says the unit."""

AXIS_LABELS = {"rad": "rad", "examples": "examples"}
"""Words beside the y axis for units that Grafana does not know."""
