"""The panels, from the declarations that Grafana's JSON and the built-in page are made of."""

from learnmech.dashboards.panels import catalogue
from scripts.reference import pages


def page() -> str:
    """Return one section for each panel."""
    lines = [
        "# Panels",
        "",
        "What the live page and Grafana draw; each panel answers one question and says when not to believe it.",
    ]
    for panel in catalogue():
        text = panel.description
        rows = [
            ("reads", f"`{panel.view}` of `{panel.name}`"),
            ("unit", panel.unit),
            ("does not apply when", text.fails),
            ("source", text.source),
        ]
        lines += ["", f"## {panel.title}", "", f"`{panel.id}`: {panel.question}", "", text.shows]
        if text.formula:
            lines += ["", f"$$\n{text.formula}\n$$"]
        lines += ["", *pages.table(("", ""), rows)]
    return "\n".join(lines)
