"""What a tool does to a model in training, and what it says when it cannot do what it was asked for."""

import math
import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.models import Batch
from benchmarks.problems import Problem, math_attention
from benchmarks.side_by_side import error_of, said
from benchmarks.tools import Measure, Reading, curvlinops, eigenthings, ours, pyhessian

COLUMNS: dict[str, tuple[str, Measure]] = {
    "learnmech": ("", ours),
    "PyHessian": ("pyhessian", partial(pyhessian, as_trained=False)),
    "curvlinops + eigsh": ("curvlinops", partial(curvlinops, replace_norms=False)),
    "hessian-eigenthings": ("hessian_eigenthings", partial(eigenthings, max_iter=20)),
}
"""Each tool as it comes, without the help that the comparison of costs gives it."""

SHORT: dict[str, Measure] = {
    "learnmech": partial(ours, max_products=3, check=False),
    "PyHessian": partial(pyhessian, maxIter=3),
    "curvlinops + eigsh": partial(curvlinops, ncv=3, maxiter=1),
    "hessian-eigenthings": partial(eigenthings, max_iter=3),
}
"""Three products or so, which are too few."""


def outcome(measure: Measure, model: nn.Module, batch: Batch, truth: float) -> str:
    """Say how a reading came out."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reading = measure(model, batch, 0)
    except Exception as error:  # noqa: BLE001 (that a tool raises is a finding)
        return f"raises {said(error)}"
    return judged(reading, truth)


def judged(reading: Reading, truth: float) -> str:
    """Say whether a value is right, and what the tool says about it."""
    error = error_of(reading.value, truth)
    says = "says nothing" if not reading.says else f"says {reading.says.split(':')[0].replace('_', ' ')}"
    if not math.isfinite(error):
        return f"no value; {says}"
    if error < 0.01:
        return "right"
    wrong = f"{reading.value:.2g} instead of {truth:.2g}" if reading.value * truth < 0 else f"{100 * error:.0f} % off"
    return f"**{wrong}**, {says}"


def traces(measure: Measure, problem: Problem) -> str:
    """Say what a measurement left behind in the model and in the random streams."""
    model, batch = problem.model(), problem.batch
    marks = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    for name, p in model.named_parameters():
        p.grad = marks[name].clone()  # as between backward and step
    torch.manual_seed(0)
    random = torch.get_rng_state()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            measure(model, batch, 0)
    except Exception:  # noqa: BLE001 (the same)
        return "(raised)"
    after = model.state_dict()
    moved = [name for name in before if not same(before[name], after.get(name))]
    parameters = dict(model.named_parameters())
    found = []
    if [name for name in moved if name in parameters]:
        found.append("weights")
    if [name for name in moved if name not in parameters]:
        found.append("BatchNorm's averages")
    if any(not same(marks[name], p.grad) for name, p in parameters.items()):
        found.append("gradients")
    if not model.training:
        found.append("training mode")
    if not torch.equal(random, torch.get_rng_state()):
        found.append("random numbers")
    return "changes " + ", ".join(found) if found else "nothing changed"


def same(a: Tensor, b: Tensor | None) -> bool:
    """Tell whether two tensors are equal."""
    return b is not None and torch.equal(a, b)


class Saddle(nn.Module):
    """Two logits, z = -(w_0^2 - 3 w_1^2 + w_2^2 / 2) and 0.

    At w = 0 the cross-entropy of the first class has the Hessian diag(1, -3, 1/2).
    """

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3))
        self.register_buffer("curvatures", torch.tensor([1.0, -3.0, 0.5]))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the same logits for each of the inputs. [batch, 2]"""
        logit = -(self.curvatures * self.w.square()).sum()
        return torch.stack([logit, torch.zeros_like(logit)]).expand(len(inputs), 2)


def saddle() -> Problem:
    """Return a problem whose largest eigenvalue, 1, is not its largest in absolute value."""
    return Problem("saddle", 0, Saddle(), (torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64)))


def manners(
    cnn: Problem, transformer: Problem, truth: dict[str, float], here: Callable[[str], bool]
) -> list[list[str]]:
    """Return a table: a situation, and how each tool came out of it."""
    chosen = {name: measure for name, (needs, measure) in COLUMNS.items() if not needs or here(needs)}
    rows = [["", *chosen]]
    rows.append(
        ["CNN with BatchNorm, in training mode"]
        + [outcome(measure, cnn.model(), cnn.batch, truth["cnn"]) for measure in chosen.values()]
    )
    rows.append(
        ["transformer with PyTorch's own choice of attention"]
        + [outcome(m, transformer.model(), transformer.batch, truth["transformer"]) for m in chosen.values()]
    )
    small = saddle()
    few = {**chosen, "hessian-eigenthings": partial(eigenthings, max_iter=3)}
    rows.append(
        ["a saddle with the spectrum 1, 1/2, -3"]
        + [outcome(few[name], small.model(), small.batch, 1.0) for name in chosen]
    )
    with math_attention():
        rows.append(
            ["transformer, allowed three products"]
            + [outcome(SHORT[n], transformer.model(), transformer.batch, truth["transformer"]) for n in chosen]
        )
    rows.append(["traces in the CNN's training"] + [traces(measure, cnn) for measure in chosen.values()])
    return rows
