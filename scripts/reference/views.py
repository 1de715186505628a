"""The public SQL, from the declarations that the store makes its views of."""

from learnmech.collector.store.views import VIEWS
from scripts.reference import pages


def page() -> str:
    """Return one section for each view."""
    lines = [
        "# SQL views",
        "",
        "What people and dashboards read, the same in SQLite and PostgreSQL; tables are private and change.",
        "",
        "Times are seconds since the epoch. After a resume from an earlier checkpoint the views show what counts. A",
        "number that is NaN or infinite is NULL, and `nonfinite` says which it was.",
    ]
    for name, view in VIEWS.items():
        lines += ["", f"## {name}", "", view.description, "", pages.code(view.columns)]
    return "\n".join(lines)
