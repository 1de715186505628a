"""Many small problems in one model: each update measures all of them, each in a scope and a window of its own.

The heads share nothing: their data are independent, and so are their windows. The truth of each is known, from a
closed form or from all per-example gradients; weights do not move (learning rate 0). Loaded by path: by tests of one
process, and by the scenario of several.
"""

import itertools
import math
import types
from pathlib import Path

import torch
from torch import nn
from torch.func import grad_and_value, vmap

from learnmech.probes import GradientNoiseScale, Recorder, every
from learnmech.probes.estimators import quantile
from learnmech.probes.estimators.ratio import ratio_now
from learnmech.probes.noise.window import RESOLVED
from learnmech.wire.spool import batches

HEADS, BURIED = 50, 10
"""Heads, and how many of these have a |G|^2 of about a thousandth of the noise of a batch."""

HALF_LIFE, MEASUREMENTS, RUNS = 8.0, 14, 13
"""Each run is a new recorder: 13 runs of 40 heads with a signal are 520 windows."""


class Heads(nn.Module):
    """Heads side by side, of one or two linear layers with a tanh between: [B, heads, inputs] -> [B, heads].

    All at once by stacked weights, or, if `apart`, one layer after the other, as hooks on layers need it.
    """

    def __init__(self, *widths):
        super().__init__()
        self.apart = False
        self.heads = nn.ModuleList(
            nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in itertools.pairwise((*widths, 1))))
            for _ in range(HEADS)
        )

    def forward(self, x):
        if self.apart:
            return torch.cat([_one(head, x[:, k]) for k, head in enumerate(self.heads)], dim=1)
        for layer in range(len(self.heads[0])):
            x = torch.tanh(x) if layer else x
            x = torch.einsum("bhi,hoi->bho", x, torch.stack([head[layer].weight for head in self.heads]))
        return x[:, :, 0]


def _one(head, x):
    for index, layer in enumerate(head):
        x = layer(torch.tanh(x) if index else x)
    return x


def gaussian(batch_size):
    """The gradient of an example is its input, x ~ N(mu, S) with a diagonal S: G = mu, tr Sigma = tr S."""
    generator = torch.Generator().manual_seed(1)
    deviations = torch.rand(HEADS, 16, generator=generator) + 0.5
    means = torch.randn(HEADS, 16, generator=generator)
    traces = deviations.square().sum(dim=1)
    ratio = torch.empty(HEADS).uniform_(6.0, 20.0, generator=generator)  # |G|^2 B / tr Sigma
    ratio[:BURIED] = 1e-3
    means *= (ratio * traces / batch_size).sqrt()[:, None] / means.norm(dim=1, keepdim=True)

    def draw(generator, size):
        return means + deviations * torch.randn(size, HEADS, 16, generator=generator)

    squares = means.double().square().sum(dim=1)
    truth = dict(zip(_scopes(), zip(traces.tolist(), squares.tolist(), strict=True), strict=True))
    model = Heads(16)
    return types.SimpleNamespace(model=model, loss=lambda model, x: model(x).sum(dim=1).mean(), draw=draw, truth=truth)


POOL = 128


def network(batch_size):
    """Heads of a hidden layer, a data set of 128 examples for each, of which batches draw with replacement.

    The gradient of an example is its residual times the gradient of its output: the part of the residuals that lies in
    the span of the latter makes G, the rest only scatters. Of the first heads little of that part is left.
    """
    torch.manual_seed(2)
    x = 1.0 + 0.5 * torch.randn(POOL, HEADS, 8)
    model = Heads(8, 4)
    y, truth = torch.empty(POOL, HEADS), {}
    for k, scope in enumerate(_scopes()):
        outputs, slopes = _outputs(model.heads[k], x[:, k].double())
        residuals = 1.0 + 0.5 * torch.randn(POOL, dtype=torch.float64)
        if k < BURIED:
            along = slopes @ torch.linalg.lstsq(slopes, residuals).solution
            trace, square = _noise(residuals - along, slopes)[0], _noise(residuals, slopes)[1]
            residuals -= (1 - math.sqrt(1e-3 * trace / batch_size / square)) * along
        y[:, k] = outputs - residuals
        truth[scope] = _noise(outputs - y[:, k], slopes)

    def draw(generator, size):
        index = torch.randint(POOL, (size, HEADS), generator=generator)
        columns = torch.arange(HEADS)
        return x[index, columns], y[index, columns]

    def loss(model, batch):
        return (model(batch[0]) - batch[1]).square().sum(dim=1).mean()

    return types.SimpleNamespace(model=model, loss=loss, draw=draw, truth=truth)


def _noise(residuals, slopes):
    rows = 2 * residuals[:, None] * slopes  # every example's gradient
    # drawn with replacement: the data set is the population
    return rows.var(dim=0, unbiased=False).sum().item(), rows.mean(dim=0).square().sum().item()


def _outputs(head, x):
    """Outputs of a head and the gradient of each. [B], [B, weights]."""
    weights = {name: p.detach().double() for name, p in head.named_parameters()}

    def one(weights, x):
        return (weights["1.weight"] @ torch.tanh(weights["0.weight"] @ x))[0]

    each, outputs = vmap(grad_and_value(one), (None, 0))(weights, x)
    return outputs, torch.cat([g.reshape(len(x), -1) for g in each.values()], dim=1)


def _scopes():
    return [f"heads.{k}" for k in range(HEADS)]


SOURCES = {
    # sizes of micro-batches, their weights in the update, the probe's arguments
    "micro_batches": ((4, 4, 4, 4), [1 / 4] * 4, {}),
    "unequal": ((5, 3, 8), [5 / 16, 3 / 16, 8 / 16], {"weighted": True}),
    "examples": ((16,), [1.0], {"source": "examples"}),
    "split_batch_in_4": ((16,), [1.0], {"source": "split"}),
}


def judged(problem, source, folder):
    """Train at fixed weights, `RUNS` times; return the verdict and the methods that were recorded."""
    sizes, weights, settings = SOURCES[source]
    task = {"gaussian": gaussian, "network": network}[problem](sum(sizes))
    task.model.apart = source == "examples"
    more = 1 if source == "examples" else 0  # the first update tells how many there are
    generator = torch.Generator().manual_seed(3 + list(SOURCES).index(source))
    runs = []
    for run in range(RUNS):
        probe = GradientNoiseScale(every(1), half_life=HALF_LIFE, **settings)
        optimizer = torch.optim.SGD(task.model.parameters(), lr=0.0)
        sink = f"spool:{folder}/{run}"
        with Recorder(
            task.model, optimizer, task.loss, [probe], sink=sink, accumulation=len(sizes), strict=True
        ) as recorder:
            for _ in range(MEASUREMENTS + more):
                optimizer.zero_grad()
                for size, weight in zip(sizes, weights, strict=True):
                    batch = task.draw(generator, size)
                    (task.loss(task.model, batch) * weight).backward()
                    if len(sizes) > 1:
                        recorder.after_backward(batch)
                optimizer.step()
                recorder.after_step(batch)
        runs.append(windows_of(f"{folder}/{run}", probe))
    return verdict(task.truth, [found for found, _ in runs], sum(sizes)), {m for _, methods in runs for m in methods}


def windows_of(folder, probe):
    """What one run recorded of each head: its last noise scale, all estimates, and the set that its window names."""
    frames = [frame for batch in batches(Path(folder)) for frame in batch.frames]
    measured = [m for frame in sorted(frames, key=lambda frame: frame.step) for m in frame.measurements]
    found = {scope: {"noise_trace": [], "grad_sq_norm": []} for scope in _scopes()}
    for m in measured:
        if m.scope in found and m.observable in found[m.scope]:
            found[m.scope][m.observable].append(m.value)
        elif m.scope in found and m.observable == "noise_scale":
            found[m.scope]["last"] = (str(m.status), m.value, m.stderr, m.reason)
    for scope, row in found.items():
        window = probe._tracker.window(scope)
        now = ratio_now(window.moments(), RESOLVED)
        row["set"] = (now.bounded, now.lower, now.upper, now.at_least)
        row["t"] = quantile(window.moments().degrees)
        row["count"] = window.count
    methods = {m.method for m in measured if m.observable == "noise_trace"}
    return found, methods


def verdict(truth, runs, batch_size):
    """Count over the windows of several runs what the issue asks for."""
    scopes = _scopes()
    resolved, buried = scopes[BURIED:], scopes[:BURIED]
    windows = [(truth[s], run[s]) for run in runs for s in resolved]
    weak = [(truth[s], run[s]) for run in runs for s in buried]

    def excess(index, name, rows, unit):
        values = [(value - true[index]) / unit(true) for true, row in rows for value in row[name]]
        values = torch.tensor(values, dtype=torch.float64)
        return values.mean().item() / (values.std().item() / math.sqrt(len(values))), len(values)

    noise = lambda true: true[0] / batch_size
    said = [(true[0] / true[1], row["last"], row["t"]) for true, row in windows if row["last"][0] == "ok"]
    return {
        "windows": len(windows),
        "bias of the trace": excess(0, "noise_trace", windows + weak, lambda true: true[0]),
        "bias of the square": excess(1, "grad_sq_norm", windows, lambda true: true[1]),
        "bias of a small square": excess(1, "grad_sq_norm", weak, noise),
        "covered": sum(_covers(row["set"], true[0] / true[1]) for true, row in windows) / len(windows),
        "numbers": len(said) / len(windows),
        "recorded": sum(abs(value - true) <= t * error for true, (_, value, error, _), t in said) / max(len(said), 1),
        "weak covered": sum(_covers(row["set"], true[0] / true[1]) for true, row in weak) / len(weak),
        "weak numbers": sum(row["last"][0] == "ok" for _, row in weak) / len(weak),
        "weak bounds": sum(row["set"][3] <= true[0] / true[1] for true, row in weak) / len(weak),
        "weak said": {(row["last"][0], row["last"][1] is None, bool(row["last"][3])) for _, row in weak},
        "weak signal": max(true[1] * batch_size / true[0] for true, _ in weak),
        "shortest": min(row["count"] for _, row in windows + weak),
    }


def _covers(found, truth):
    bounded, lower, upper, _ = found
    if bounded:
        return lower <= truth <= upper
    return (math.isinf(lower) and math.isinf(upper)) or truth <= lower or truth >= upper


def check(found):
    """Hold a verdict against the issue: three standard errors, 92 to 98 %, no number where noise buries the signal."""
    assert found["windows"] >= 500
    assert found["shortest"] >= MEASUREMENTS
    for name in ("bias of the trace", "bias of the square", "bias of a small square"):
        errors, count = found[name]
        assert abs(errors) <= 3.0, (name, errors)
        assert count >= 500
    assert 0.92 <= found["covered"] <= 0.98, found
    assert found["numbers"] >= 0.8, found
    # value +- t standard errors; where many windows give no number, those that do are chosen by chance
    assert found["numbers"] * (1 - found["recorded"]) <= 0.08, found
    assert found["numbers"] < 0.95 or 0.92 <= found["recorded"] <= 0.98, found
    assert found["weak signal"] < 0.02
    assert found["weak numbers"] <= 0.02, found
    assert found["weak bounds"] >= 0.95, found
    assert found["weak covered"] >= 0.85, found  # products of noise are skewed where few directions carry it
