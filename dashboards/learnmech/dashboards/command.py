"""`learnmech dashboards`: write the generated files, check that they are current, list what there is."""

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Grafana's dashboards and the page's panels, generated from one set of declarations.", no_args_is_help=True
)

GRAFANA_FOLDER = Path("dashboards/grafana")
"""Where a checkout keeps Grafana's JSON."""

Folder = Annotated[
    Path, typer.Argument(help="Folder of Grafana's JSON files; a checkout keeps them in dashboards/grafana.")
]


@app.command()
def build(folder: Folder = GRAFANA_FOLDER) -> None:
    """Write Grafana's dashboards into FOLDER, and in a checkout the page's panels.json."""
    try:
        written = _write(folder)
    except (OSError, UnicodeDecodeError) as error:
        typer.echo(f"learnmech: {error}; expected a folder that this user may write to", err=True)
        raise typer.Exit(1) from None
    for path in _strangers(folder):
        typer.echo(f"{path} is not generated here any more; delete it", err=True)
    if not written:
        typer.echo("everything is current")


@app.command()
def check(folder: Folder = GRAFANA_FOLDER) -> None:
    """Say whether the files in FOLDER are what the declarations make of them; exit with 1 if not."""
    wrong = [
        f"{path} {'differs' if path.exists() else 'is missing'}"
        for path, text in _expected(folder).items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    wrong += [f"{path} is not generated" for path in _strangers(folder)]
    for sentence in wrong:
        typer.echo(f"learnmech: {sentence}", err=True)
    if wrong:
        typer.echo(f"learnmech: type: learnmech dashboards build {folder}", err=True)
        raise typer.Exit(1)
    typer.echo("everything is current")


@app.command("list")
def list_panels(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the declared panels and the dashboards that draw them."""
    from learnmech.dashboards import panels

    if as_json:
        rows = [
            {"id": p.id, "title": p.title, "question": p.question, "view": p.view, "name": p.name, "unit": p.unit}
            for p in panels.catalogue()
        ]
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("panel", "title", "question", "reads", box=None, header_style="bold")
    for panel in panels.catalogue():
        table.add_row(panel.id, panel.title, panel.question, f"{panel.view}: {panel.name}")
    Console().print(table)


def _write(folder: Path) -> int:
    """Write what is not there or differs; return how many files that were."""
    folder.mkdir(parents=True, exist_ok=True)
    written = 0
    for path, text in _expected(folder).items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            typer.echo(f"wrote {path}")
            written += 1
    return written


def _expected(folder: Path) -> dict[Path, str]:
    from learnmech.dashboards import grafana, page

    expected = {folder / name: text for name, text in grafana.files().items()}
    return expected | {page.folder() / page.PANELS_FILE: page.panels_json()}


def _strangers(folder: Path) -> list[Path]:
    from learnmech.dashboards import grafana

    return sorted(path for path in folder.glob("*.json") if path.name not in grafana.files())
