"""The findings of a dry run for people."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDE = 110
"""Columns of a terminal from which the table has room for all that there is; less is in `--json`."""

STYLES = {"yes": "green", "partly": "yellow", "no": "red"}


def show(report: Mapping[str, Any], console: Console) -> None:
    """Print a report."""
    _head(report, console)
    console.print()
    console.print(_table(report, console.width))
    legend = f"every: updates from one use to the next within a budget of {report['budget']:.2g}, beside those in bold"
    console.print(Text(f"{legend}{'; alone: without those' if console.width >= WIDE else ''}", style="dim"))
    _reasons(report, console)
    console.print()
    for sentence in report["advice"]:
        _say(console, "advice", sentence)


def _head(report: Mapping[str, Any], console: Console) -> None:
    training, harmless, replay = report["training"], report["harmless"], report["replay"]
    parameters = training["parameters"]
    model = f"{training['model']}, {parameters:,} parameters" if parameters is not None else training["model"]
    _say(console, "model", f"{model} in {training['dtype']} on {training['device']} ({training['device_name']})")
    details = [training["trainer"], training["optimizer"]]
    details += [f"precision {training['precision']}"] if training["precision"] else []
    details += [f"{training['accumulation']} micro-batches"] if (training["accumulation"] or 1) > 1 else []
    details += [f"clipped at {training['gradient_clip']:g}"] if training["gradient_clip"] else []
    _say(console, "trainer", ", ".join(str(detail) for detail in details if detail))
    if training["changes"]:
        _say(console, "dry run", ", ".join(training["changes"]))
    if training["step_ms"] is not None:
        _say(console, "a step", f"{_time(training['step_ms'])}, from {training['updates']} updates")
    _say(console, "harm", harmless["detail"], style="" if harmless["identical"] is not False else "bold red")
    if replay["relative_error"] is not None and replay["verdict"] == "passed":
        _say(console, "replay", f"its gradient is the real one (relative error {replay['relative_error']:.1e})")
    if training["side_effects"] and replay["verdict"] != "refused":
        _say(console, "undone", f"after every replay: {', '.join(training['side_effects'])}")


def _table(report: Mapping[str, Any], width: int) -> Table:
    wide = width >= WIDE
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("probe", overflow="fold", min_width=len("HessianEigenvalues"))
    table.add_column("works", no_wrap=True)
    table.add_column("method", overflow="fold")
    if wide:
        table.add_column("first use", justify="right", no_wrap=True)
    for title in ("later", "in steps", "every", *(("alone", "error") if wide else ())):
        table.add_column(title, justify="right", no_wrap=True)
    for probe in report["probes"]:
        row: list[str | Text] = [
            Text(probe["probe"], style="bold" if probe["wanted"] else ""),
            Text(probe["works"], style=STYLES.get(probe["works"], "dim")),
            ", ".join(probe["methods"] if wide else probe["methods"][:1]),
        ]
        row += [_time(probe["first_ms"])] if wide else []
        row += [_time(probe["warm_ms"]), _short(probe["warm_steps"]), _count(probe["every_together"])]
        row += [_count(probe["every_alone"]), _error(probe)] if wide else []
        table.add_row(*row)
    return table


def _reasons(report: Mapping[str, Any], console: Console) -> None:
    """Say why, once for all probes that have the same reason."""
    reasons: dict[str, list[str]] = {}
    for probe in report["probes"]:
        if probe["reason"]:
            reasons.setdefault(f"{probe['reason']} {probe['remedy']}".strip(), []).append(probe["probe"])
    for reason, names in reasons.items():
        console.print()
        console.print(Text(f"{', '.join(names)}: {reason}"))
    notices: dict[str, list[str]] = {}
    for probe in report["probes"]:
        for notice in probe["notices"]:
            notices.setdefault(notice, []).append(probe["probe"])
    for notice, names in notices.items():
        console.print()
        console.print(Text(f"{', '.join(names)}: {notice}"))


def _say(console: Console, label: str, words: str, style: str = "") -> None:
    table = Table.grid(padding=(0, 1))
    table.add_column(width=8)
    table.add_column()
    table.add_row(Text(label, style="bold"), Text(words, style=style))
    console.print(table)


def _time(milliseconds: float | None) -> str:
    if milliseconds is None:
        return ""
    return f"{milliseconds / 1000:.3g} s" if milliseconds >= 1000 else f"{_short(milliseconds)} ms"


def _short(number: float | None) -> str:
    return "" if number is None else f"{number:.2g}" if number < 100 else f"{number:.0f}"


def _count(updates: int | None) -> str:
    """Return a number of updates to two digits: more are not in it."""
    return "" if updates is None else f"{float(f'{updates:.2g}'):,.0f}"


def _error(probe: Mapping[str, Any]) -> str:
    if probe["status"] not in ("", "ok"):
        return str(probe["status"])
    return "" if probe["relative_error"] is None else f"{100 * probe['relative_error']:.2g} %"
