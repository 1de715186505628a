"""One reading at a time: every tool at the same weights on the same batch, at the start and in mid-training."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from benchmarks.measuring import Spent, peak_bytes, timed
from benchmarks.problems import Problem, math_attention
from benchmarks.tools import Again, Reading, Tool, curvlinops, eigenthings, ours, pyhessian, to_one_percent


@dataclass
class Row:
    """What one tool did on one problem.

    Attributes:
        tool: Its name.
        readings: One a repeat, each from another random start.
        spent: What each took.
        ratios: CPU time over that of `ours, cold` in the same round.
        peak: Most memory held at one time, in bytes.
        trouble: What it raised; '' if nothing.
    """

    tool: str
    readings: list[Reading] = field(default_factory=list)
    spent: list[Spent] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    peak: int = 0
    trouble: str = ""

    @property
    def products(self) -> float:
        """Median of products."""
        return statistics.median(reading.products for reading in self.readings)

    @property
    def total(self) -> float:
        """CPU seconds so far."""
        return sum(spent.cpu for spent in self.spent)

    def worst(self, truth: float) -> float:
        """Return the relative error of the worst reading."""
        return max(error_of(reading.value, truth) for reading in self.readings)


def error_of(value: float, truth: float) -> float:
    """Return the relative error; infinite for a NaN."""
    return math.inf if math.isnan(value) else abs(value - truth) / abs(truth)


BASELINE = "learnmech, cold"


def tools_for(before: Problem | None) -> list[Tool]:
    """Return the tools; the warm ones start from what they find in the problem some steps before, if there is one."""
    rough = to_one_percent()
    found = [Tool(BASELINE, ours), Tool("learnmech, cold, to 1 %", partial(ours, **rough))]
    if before is not None:
        found += [
            Tool("learnmech, warm", Again(before.model(), before.batch)),
            Tool("learnmech, warm, to 1 %", Again(before.model(), before.batch, **rough)),
        ]
    return [
        *found,
        Tool("PyHessian", pyhessian, "pyhessian"),
        Tool("PyHessian, tol 1e-5", partial(pyhessian, tol=1e-5), "pyhessian"),
        Tool("curvlinops + eigsh", curvlinops, "curvlinops"),
        Tool("curvlinops + eigsh, tol 1e-2", partial(curvlinops, tol=1e-2), "curvlinops"),
        Tool("hessian-eigenthings", eigenthings, "hessian_eigenthings"),
        Tool("hessian-eigenthings, max_iter 20", partial(eigenthings, max_iter=20), "hessian_eigenthings"),
    ]


def compare(
    problem: Problem,
    tools: Sequence[Tool],
    *,
    repeats: int,
    patience: float,
    memory: bool,
    tell: Callable[[], None] = lambda: None,
) -> list[Row]:
    """Let every tool measure the same problem, in turns, so that a drift of the machine's speed hits all alike.

    A first reading, whose memory is measured, warms everything up. A tool that raises keeps its message instead.

    Args:
        problem: The problem.
        tools: The tools.
        repeats: Rounds.
        patience: CPU seconds after which a tool is not repeated further.
        memory: Whether to do that first reading.
        tell: Called after each tool of the first round and each further round.
    """
    rows = {tool.name: Row(tool.name) for tool in tools}
    with math_attention():
        for repeat in range(0 if memory else 1, repeats + 1):
            baseline = math.nan
            for tool in tools:
                row, model = rows[tool.name], problem.model()
                if row.trouble or (row.spent and row.total > patience):
                    continue
                work = partial(tool.measure, model, problem.batch, repeat)
                try:
                    if repeat == 0:
                        row.peak = peak_bytes(work)
                        continue
                    reading, spent = timed(work)
                except Exception as error:  # noqa: BLE001 (that a tool raises is a finding)
                    row.trouble = said(error)
                    continue
                baseline = spent.cpu if tool.name == BASELINE else baseline
                row.readings.append(replace(reading, result=None))
                row.spent.append(spent)
                row.ratios.append(spent.cpu / baseline)
                tell()
    return list(rows.values())


def said(error: Exception) -> str:
    """Return an exception in one short line."""
    lines = str(error).strip().splitlines() or [""]
    text = f"{type(error).__name__}: {lines[0]}"
    return text if len(text) <= 140 else text[:137] + "..."
