"""How the demo speaks at the end: a table for people, JSON for programs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from learnmech.lab.findings import Finding, headlines, one_by_one
from learnmech.laws import Verdict

_STYLES: Final[Mapping[str, str]] = {
    Verdict.HOLDS: "green",
    Verdict.DEVIATES: "bold red",
    Verdict.UNDETERMINED: "yellow",
    Verdict.NOT_APPLICABLE: "dim",
    Verdict.SUB_EDGE: "cyan",
}


@dataclass(slots=True)
class Report:
    """What came out of a demo.

    Attributes:
        url: Address of the page.
        database: Where everything is stored.
        seconds: How long it took.
        runs: What the collector says of each run, without laws and series.
        findings: Every law in every scope of every run.
        edge: What the gradient descent must show.
        problems: What went wrong, in sentences.
    """

    url: str
    database: str
    seconds: float = 0.0
    runs: list[dict[str, Any]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    edge: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """Return the report as JSON-ready values; `table` has the rows that people see, `laws` those of all scopes."""
        return {
            "url": self.url,
            "database": self.database,
            "seconds": round(self.seconds, 1),
            "runs": self.runs,
            "table": [asdict(row) for row in headlines(self.findings)],
            "laws": [asdict(row) for row in self.findings],
            "edge": self.edge,
            "problems": self.problems,
        }


def show(report: Report, console: Console) -> None:
    """Print the table, the reasons, what the edge run must show, and the problems."""
    rows = headlines(report.findings)
    table = Table(title="Measured against predicted, read back from the store", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("run", no_wrap=True)
    table.add_column("law")
    for column in ("measured", "predicted", "ratio"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for row in rows:
        numbers = (_number(row.measured), _number(row.predicted), _number(row.ratio, ".3f"))
        table.add_row(escape(row.run), escape(row.title), *numbers, verdict(row.verdict))
    if rows:
        console.print()
        console.print(table)
    for row in rows:
        console.print(f"[bold]{escape(row.title)}[/bold], {escape(row.run)}: {escape(row.reason)}", highlight=False)
        if single := one_by_one(report.findings, row):
            console.print(f"  matrix by matrix: {single}", highlight=False)
    _show_edge(report.edge, console)
    for problem in report.problems:
        console.print(f"[bold red]problem:[/bold red] {escape(problem)}", highlight=False)
    database = escape(report.database)
    console.print(f"\n{report.seconds:.0f} s. ", end="", highlight=False)
    if report.problems:
        console.print(
            f"What was measured and is not stored is in the spool: learnmech collect --ingest .learnmech/spool "
            f"--db {database}",
            highlight=False,
        )
    else:
        console.print(f"All of it is stored: learnmech runs --db {database}", highlight=False)


def verdict(name: str) -> str:
    """Return a verdict in its colour, as rich markup."""
    style = _STYLES.get(name, "")
    words = name.replace("_", " ")
    return f"[{style}]{words}[/]" if style else words


def _show_edge(edge: Mapping[str, Any], console: Console) -> None:
    if edge.get("median_ratio") is None:
        return
    console.print(
        f"\nGradient descent: over the last third of the run the median of sharpness times eta/2 is "
        f"{edge['median_ratio']:.3f}. Halving eta moved the edge from {_number(edge['predicted_before'])} to "
        f"{_number(edge['predicted_after'])}; the run rode the first from step {edge['rode_before']} and the second "
        f"from step {edge['rode_after']}.",
        highlight=False,
    )


def _number(value: float | None, form: str = ".4g") -> str:
    return "-" if value is None else format(value, form)
