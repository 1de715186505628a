"""What `learnmech runs` and `learnmech judge` do: look at stored runs, and judge them again."""

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from learnmech import laws
from learnmech.collector.judging import Judge
from learnmech.collector.service.settings import SettingsError
from learnmech.collector.store import RunRow, Store


def show_runs(store: Store, *, as_json: bool) -> None:
    """Print every run, newest first, as a table or as JSON."""
    runs = store.runs()
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(runs)).decode())
        return
    if not runs:
        typer.echo(f"{store.url} holds no runs yet")
        return
    table = Table("run", "project", "status", "step", "points", "id")
    for run in runs:
        step = "" if run.last_step is None else str(run.last_step)
        table.add_row(run.name, run.project, run.status, step, str(run.points), run.id)
    Console().print(table)


def judge(store: Store, name: str | None, law: str) -> None:
    """Judge one run, or all when `name` is None, from the first step on; by one law when `law` names one."""
    chosen = laws.get(law) if law else None
    everything = Judge(store)
    for run in store.runs() if name is None else [find(store, name)]:
        rows = _judge_by(store, everything, run.id, chosen) if chosen else everything.judge(run.id, from_step=0)
        typer.echo(f"{run.name} ({run.id[:8]}): {rows} residuals")


def _judge_by(store: Store, everything: Judge, run_id: str, law: laws.Law) -> int:
    """Judge a run by one law, leaving nothing unjudged by the others.

    What waits is marked per run and not per law: a judge of one law takes the mark away for all. So the others go
    first, and again if anything arrived meanwhile.
    """
    everything.judge(run_id)
    before = store.run(run_id)
    rows = Judge(store, [law]).judge(run_id, from_step=0)
    after = store.run(run_id)
    if (after.points, after.attempts) != (before.points, before.attempts):
        everything.judge(run_id, from_step=0)
    return rows


def find(store: Store, text: str) -> RunRow:
    """Return the run that `text` means: an id, a name that only one run has, or the beginning of one id.

    Raises:
        SettingsError: None, or several.
    """
    runs = store.runs()
    found = [run for run in runs if run.id == text] or [run for run in runs if run.name == text]
    found = found or [run for run in runs if run.id.startswith(text)]
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(f"{run.id} ({run.project})" for run in found[:5])
        raise SettingsError(f"{len(found)} runs are called {text!r}; expected one; name it by its id: {ids}")
    raise SettingsError(f"no run {text!r} among {len(runs)}; expected a name or an id; `learnmech runs` lists them")
