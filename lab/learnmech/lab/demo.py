"""The demo: a collector, two trainings that stream to it, and what the store says of them at the end."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from learnmech.lab.embedded import CollectorError, EmbeddedCollector
from learnmech.lab.findings import EDGE, edge, findings, problems
from learnmech.lab.readback import Readback, ReadbackError
from learnmech.lab.report import Report
from learnmech.lab.settings import FULL, QUICK, Settings
from learnmech.sinks import identity


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was asked for on the command line.

    Attributes:
        quick: Smaller trainings.
        database: Database URL.
        port: Port of the page, None for 8765 or any free one.
        seed: Seed of data and weights.
    """

    quick: bool = False
    database: str = "sqlite:///learnmech.db"
    port: int | None = None
    seed: int = 0

    @property
    def settings(self) -> Settings:
        """What is trained."""
        return QUICK if self.quick else FULL


class Bar:
    """One line of the progress display."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def __call__(self, step: int, loss: float) -> None:
        """Show the updates done and the loss."""
        self._progress.update(self._task, completed=step, loss=f"loss {loss:.4f}")


@contextmanager
def bars(console: Console) -> Iterator[Progress]:
    """Show progress: one line per training."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield progress


def run(options: Options, collector: EmbeddedCollector, console: Console) -> Report:
    """Train both models against a collector that is starting, and read back what it stored.

    Args:
        options: What was asked for.
        collector: The collector, started.
        console: Where people look.

    Raises:
        CollectorError: The collector did not start.
        KeyboardInterrupt: The user interrupted a training.
    """  # noqa: DOC502 (raised by what it calls)
    began = time.monotonic()
    url = collector.wait()
    console.print(f"live page: [bold]{url}/[/bold]", highlight=False)
    # Here, not above: importing torch and Lightning takes seconds; neither `--help` nor a wrong database waits for it.
    import torch

    from learnmech.lab import descent, language

    # One thread trains and the other core serves and judges: with matrices this small a second thread only waits.
    torch.set_num_threads(1)
    settings = options.settings
    with bars(console) as progress:
        first, second = (
            progress.add_task(name, total=part.steps, loss="", start=False)
            for name, part in ((descent.NAME, settings.descent), (language.NAME, settings.language))
        )
        progress.start_task(first)
        digits_run = descent.train(settings.descent, sink=url, seed=options.seed, progress=Bar(progress, first))
        progress.start_task(second)
        text_run = language.train(settings.language, sink=url, seed=options.seed, progress=Bar(progress, second))
    report = Report(url=url, database=identity(options.database))
    for step in (collector.check, lambda: _read_back(report, digits_run, text_run, settings)):
        try:
            step()
        except (ReadbackError, CollectorError) as error:
            report.problems.append(str(error))
    report.seconds = time.monotonic() - began
    return report


def _read_back(report: Report, digits_run: str, text_run: str, settings: Settings) -> None:
    readback = Readback(report.url)
    language = settings.language
    every = {
        digits_run: {"sharpness": settings.descent.every},
        text_run: {
            "sharpness": language.every_sharpness,
            "noise_trace": language.every_noise,
            "weight_norm": language.every_weights,
        },
    }
    steps = {digits_run: settings.descent.steps, text_run: language.steps}
    for run_id, expected in every.items():
        stored = readback.settled(run_id)
        report.runs.append({key: value for key, value in stored.items() if key not in ("laws", "series")})
        report.findings += findings(stored)
        report.problems += problems(stored, readback.events(run_id), steps=steps[run_id], expected=expected)
    report.edge = edge(readback.residuals(digits_run, EDGE), settings.descent)
