"""A run measured every 20 steps, to 1 % at every measurement: what that takes with each tool."""

import copy
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from torch import nn

from benchmarks.measuring import Spent, timed
from benchmarks.models import Batch, loss_fn
from benchmarks.problems import Problem, math_attention
from benchmarks.side_by_side import error_of, said
from benchmarks.tools import Reading, Tool, counted, curvlinops, pyhessian
from learnmech.observables import Status
from learnmech.probes import Sharpness, every
from learnmech.probes.curvature.operators import HessianOperator
from learnmech.probes.isolation import FunctionSource, isolated
from learnmech.probes.probe import TrainingView

GOAL = 0.01
"""Relative error that every measurement is to keep."""


class Probe:
    """Our probe at its own settings, called as the recorder calls it; it remembers its eigenvector between calls."""

    def __init__(self, *, warm: bool) -> None:
        self.probe = Sharpness(every(1), preconditioned=False)
        self.warm = warm

    def __call__(self, model: nn.Module, batch: Batch, seed: int) -> Reading:  # noqa: ARG002 (every tool is given one)
        """Measure."""
        if not self.warm:
            self.probe = copy.copy(self.probe)  # copies leave the eigenvectors out, and nothing else
        source = FunctionSource(model, loss_fn)
        view = TrainingView(
            step=0,
            model=model,
            optimizers=(),
            parameters=dict(model.named_parameters()),
            isolate=partial(isolated, source),
            defer=lambda tensors, convert: None,  # noqa: ARG005 (this probe defers nothing)
            batch=batch,
        )
        with counted(HessianOperator, "matvec") as calls:
            top = next(one for one in self.probe.measure(view) if one.observable == "sharpness")
        says = "converged" if top.status is Status.OK else f"{top.status.value}: {top.reason}"
        return Reading(float("nan") if top.value is None else float(top.value), calls[0], says)


class ByHand:
    """eigsh as an expert would drive it: 1 % asked for, a small basis, started from the vector before."""

    def __init__(self) -> None:
        self.last = None

    def __call__(self, model: nn.Module, batch: Batch, seed: int) -> Reading:
        """Measure."""
        reading = curvlinops(model, batch, seed, start=self.last, tol=1e-2, ncv=5)
        self.last = reading.result
        return reading


@dataclass
class Track:
    """What one tool did along a run, one entry a measurement."""

    tool: str
    readings: list[Reading] = field(default_factory=list)
    spent: list[Spent] = field(default_factory=list)
    trouble: str = ""

    @property
    def products(self) -> list[int]:
        """Products of each measurement."""
        return [reading.products for reading in self.readings]

    def errors(self, truth: Sequence[float]) -> list[float]:
        """Relative error of each measurement."""
        return [error_of(reading.value, true) for reading, true in zip(self.readings, truth, strict=True)]


OURS = "learnmech"
COLD = "learnmech, cold each time"
PYHESSIAN = "PyHessian"
EIGSH = "curvlinops + eigsh, tol 1e-2"


def tools() -> list[Tool]:
    """Return fresh tools for one run."""
    return [
        Tool(OURS, Probe(warm=True)),
        Tool(COLD, Probe(warm=False)),
        Tool(PYHESSIAN, pyhessian, "pyhessian"),
        Tool(EIGSH, partial(curvlinops, tol=1e-2), "curvlinops"),
        Tool("curvlinops + eigsh, tuned by hand", ByHand(), "curvlinops"),
    ]


def follow(problems: Sequence[Problem], tell: Callable[[], None] = lambda: None) -> list[Track]:
    """Let every tool measure every problem of a run in order, in turns."""
    chosen = [tool for tool in tools() if tool.here]
    tracks = {tool.name: Track(tool.name) for tool in chosen}
    with math_attention():
        for tool in tools():
            if tool.here:  # warm everything up with tools of the same kind that are thrown away
                attempt(tool, problems[0], 0)
        for index, problem in enumerate(problems):
            for tool in chosen:
                track = tracks[tool.name]
                if track.trouble:
                    continue
                try:
                    reading, spent = timed(partial(tool.measure, problem.model(), problem.batch, index))
                except Exception as error:  # noqa: BLE001 (that a tool raises is a finding)
                    track.trouble = said(error)
                    continue
                track.readings.append(replace(reading, result=None))
                track.spent.append(spent)
            tell()
    return list(tracks.values())


def attempt(tool: Tool, problem: Problem, seed: int) -> None:
    """Measure once and forget it."""
    try:
        tool.measure(problem.model(), problem.batch, seed)
    except Exception:  # noqa: BLE001 (it will say so again in its turn)
        return


def time_ratio(track: Track, ours: Track) -> float:
    """Return the median over measurements of CPU time over ours at the same weights."""
    pairs = zip(track.spent, ours.spent, strict=True)
    return statistics.median(theirs.cpu / mine.cpu for theirs, mine in pairs)
