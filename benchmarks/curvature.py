"""Side by side with the peers: the largest Hessian eigenvalue by learnmech, PyHessian, curvlinops with SciPy's eigsh,
and hessian-eigenthings, on an MLP, a CNN and a transformer, at the start, in the middle and all along a run.

    make bench
"""

import dataclasses
import gc
import importlib.metadata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import manners, reference, side_by_side, tracking
from benchmarks.models import TASKS, Task, mlp
from benchmarks.picture import draw
from benchmarks.problems import Problem, size, trajectory
from benchmarks.report import markdown
from benchmarks.results import Network, Reading, Results
from benchmarks.tools import Tool

PEERS = {"PyHessian": "pyhessian", "curvlinops-for-pytorch": "curvlinops", "hessian-eigenthings": "hessian_eigenthings"}


@dataclass(frozen=True)
class Plan:
    """How much to measure.

    Attributes:
        steps: Length of the runs.
        every: Steps between two measurements.
        middle: The step called mid-training.
        repeats: Timed readings of each tool at the start and in the middle.
        patience: Seconds a tool may take on one problem before it is repeated no more.
        share: Batches are smaller by this factor.
        memory: Measure the peak memory too.
    """

    steps: int = 300
    every: int = 20
    middle: int = 200
    repeats: int = 3
    patience: float = 3.0
    share: int = 1
    memory: bool = True


QUICK = Plan(steps=40, middle=40, repeats=1, patience=0.0, share=8, memory=False)


def measure(name: str, task: Task, plan: Plan, device: str, progress: "Ticker") -> tuple[Network, Problem]:
    """Measure one network; return what was found, and the problem in mid-training."""
    task = dataclasses.replace(task, batch=max(task.batch // plan.share, 2))
    count = plan.steps // plan.every + 1
    with progress.stage(f"{name}: training", count) as tell:
        problems = trajectory(name, task, steps=plan.steps, every=plan.every, device=device, tell=tell)
    network = Network(name, size(problems[0].network), task.recipe, task.batch)
    middle = plan.middle // plan.every
    for index in (0, middle):
        problem = problems[index]
        tools = [tool for tool in side_by_side.tools_for(problems[index - 1] if index else None) if tool.here]
        with progress.stage(f"{name}: side by side, step {problem.step}", len(tools) * plan.repeats + 1) as tell:
            truth = reference.reference(problem, reference.EXACT)
            agreement = abs(reference.second_opinion(problem) - truth) / abs(truth)
            tell()
            rows = side_by_side.compare(
                problem, tools, repeats=plan.repeats, patience=plan.patience, memory=plan.memory, tell=tell
            )
        network.readings.append(Reading(problem.step, truth, agreement, rows))
    with progress.stage(f"{name}: along the run", 2 * count) as tell:
        network.steps = [problem.step for problem in problems]
        for problem in problems:
            network.truths.append(reference.reference(problem))
            tell()
        network.tracks = tracking.follow(problems, tell)
    return network, problems[middle]


def run(plan: Plan, progress: "Ticker", *, tasks: dict[str, Task] | None = None, device: str = "cpu") -> Results:
    """Measure everything."""
    results = Results(place(device), memory(device), plan.every)
    middles = {}
    gc.collect()
    gc.freeze()  # the collections before each timed reading then look at what is new only
    with quiet():
        warm_up(device)
        for name, task in (tasks or TASKS).items():
            network, middles[name] = measure(name, task, plan, device, progress)
            results.networks.append(network)
        if {"cnn", "transformer"} <= set(middles):
            truth = {network.name: network.readings[-1].truth for network in results.networks}
            with progress.stage("manners", 1) as tell:
                results.manners = manners.manners(middles["cnn"], middles["transformer"], truth, installed)
                tell()
    gc.unfreeze()
    return results


def warm_up(device: str) -> None:
    """Let every tool measure something tiny: imports and first uses are charged to nobody."""
    data = (torch.randn(8, 64, device=device), torch.arange(8, device=device))
    tiny = Problem("tiny", 0, mlp(8).to(device), data)
    side_by_side.compare(
        tiny, [tool for tool in side_by_side.tools_for(tiny) if tool.here], repeats=0, patience=0.0, memory=True
    )


class Ticker:
    """A progress bar with a line a stage."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    @contextmanager
    def stage(self, words: str, total: int) -> Iterator["Tell"]:
        """Show a stage of so many ticks."""
        task = self.progress.add_task(words, total=total)
        yield Tell(self.progress, task)
        self.progress.update(task, completed=total)


class Tell:
    """Advances one line of the progress bar."""

    def __init__(self, progress: Progress, task: object) -> None:
        self._progress, self._task = progress, task

    def __call__(self) -> None:
        """Tick."""
        self._progress.advance(self._task)  # type: ignore[arg-type]  # rich's TaskID


def bar() -> Progress:
    """Return the progress bar, on stderr."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"))
    return Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True))


@contextmanager
def quiet() -> Iterator[None]:
    """Keep peers' warnings off the screen; what they mean is in the tables."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def installed(module: str) -> bool:
    """Tell whether a peer is there."""
    return Tool("", side_by_side.ours, module).here


def place(device: str) -> str:
    """Say where this ran, with versions."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    peers = [f"{peer} {importlib.metadata.version(peer)}" for peer, module in PEERS.items() if installed(module)]
    lacking = [peer for peer, module in PEERS.items() if not installed(module)]
    versions = ", ".join([f"torch {torch.__version__}", f"SciPy {importlib.metadata.version('scipy')}", *peers])
    return f"Measured on: {name}; {versions}." + (f" Not installed: {', '.join(lacking)}." if lacking else "")


def memory(device: str) -> str:
    """Say how memory was measured."""
    if device == "cuda":
        return "Peak memory is that of PyTorch's allocator beyond the model, `torch.cuda.max_memory_allocated`."
    return (
        "Peak memory, beyond the model, is the highest level of PyTorch's allocator (from the profiler's record of "
        "every allocation) plus that of NumPy's (tracemalloc), where SciPy keeps its basis."
    )


def write(results: Results, folder: Path) -> None:
    """Write the tables and the picture."""
    (folder / "curvature.md").write_text(markdown(results), encoding="utf-8")
    (folder / "curvature.svg").write_text(draw(results), encoding="utf-8")
