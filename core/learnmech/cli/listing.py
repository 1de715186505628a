"""Tables for people and rows for programs: the laws and the vocabulary."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from learnmech import laws as law_package
from learnmech import observables as observable_package


def laws(name: str | None = None) -> list[dict[str, Any]]:
    """Return every law, or the one called `name`, as JSON-ready rows; an unknown name raises `UnknownLaw`."""
    chosen = law_package.catalogue() if name is None else (law_package.get(name),)
    return [
        {
            "name": law.name,
            "title": law.title,
            "statement": law.statement,
            "reference": law.reference,
            "version": law.version,
            "measures": list(law.measures),
            "needs": list(law.needs),
            "uses": list(law.uses),
            "tolerance": {"lower": law.band.lower, "upper": law.band.upper, "origin": law.band.origin},
            "band": f"{law.band.lower:g} to {law.band.upper:g}",
            "one_sided": law.one_sided,
            "advice": {str(verdict): text for verdict, text in law.advice.items()},
            "description": (type(law).__doc__ or "").strip(),
        }
        for law in chosen
    ]


def observables() -> list[dict[str, Any]]:
    """Return the vocabulary as JSON-ready rows."""
    return [
        {
            "name": observable.name,
            "kind": str(observable.kind),
            "symbol": observable.symbol,
            "unit": observable.unit,
            "scale": str(observable.scale),
            "error": str(observable.error),
            "description": observable.description,
        }
        for observable in observable_package.catalogue()
    ]


def show_table(title: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Print chosen columns of `rows` as a table."""
    table = Table(title=title, title_justify="left")
    for position, column in enumerate(columns):
        table.add_column(column, no_wrap=position == 0)  # the first one is what a person copies
    for row in rows:
        table.add_row(*(", ".join(row[c]) if isinstance(row[c], list) else str(row[c]) for c in columns))
    Console().print(table)


def show_law(row: Mapping[str, Any]) -> None:
    """Print one law: what it says, what it needs, what to do about each verdict."""
    console = Console()
    console.print(f"[bold]{row['title']}[/bold]  ({row['name']}, version {row['version']})\n")
    console.print(row["description"], markup=False)
    for label in ("statement", "reference", "measures", "needs", "uses"):
        text = ", ".join(row[label]) if isinstance(row[label], list) else row[label]
        console.print(f"\n{label}: {text}", markup=False, highlight=False)
    console.print(f"\nband: {row['band']} ({row['tolerance']['origin']})", markup=False, highlight=False)
    for verdict, text in row["advice"].items():
        console.print(f"\n{verdict}: {text}", markup=False, highlight=False)
