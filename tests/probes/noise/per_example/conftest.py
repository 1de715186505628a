"""The oracle: every example's own gradient by a loop of backward passes over batches of one; it knows no hook."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from learnmech.probes import GradientNoiseScale, Recorder, every
from learnmech.probes.noise.per_example import PerExample

Loss = Callable[[nn.Module, Any], Tensor]


def named(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters())


def cubic(model: nn.Module, batch: tuple[Tensor, ...], axis: int = 0) -> Tensor:
    """A mean over examples whose gradient depends on them in no simple way."""
    return (model(*batch) + 0.3).pow(3).movedim(axis, 0).flatten(1).sum(1).mean()


def contributions(model: nn.Module, loss: Loss, batch: tuple[Tensor, ...], axis: int = 0) -> dict[str, Tensor]:
    """h_i = g_i / B for a loss that is a mean over examples. [B, numbers] for each parameter"""
    size = batch[0].shape[axis]
    rows: dict[str, list[Tensor]] = {}
    for i in range(size):
        parameters = {name: p for name, p in named(model).items() if p.requires_grad}
        one = loss(model, tuple(x.narrow(axis, i, 1) for x in batch))
        found = torch.autograd.grad(one, list(parameters.values()), allow_unused=True)
        for (name, p), g in zip(parameters.items(), found, strict=True):
            rows.setdefault(name, []).append((torch.zeros_like(p) if g is None else g.to_dense()).flatten() / size)
    return {name: torch.stack(row) for name, row in rows.items()}


def measure(model: nn.Module, loss: Loss, batch: Any, size: int, **settings: Any) -> PerExample:
    """Measure in one ordinary forward and backward pass."""
    model.zero_grad()
    with PerExample(model, settings.pop("parameters", named(model)), size, **settings) as examples:
        loss(model, batch).backward()
    return examples


def read(examples: PerExample) -> dict[str, list[float]]:
    return {name: pair.tolist() for name, pair in examples.evidence().items()}


def check(model: nn.Module, loss: Loss, batch: tuple[Tensor, ...], axis: int = 0) -> PerExample:
    """Every parameter is covered, and its squares are those of the loop to 1e-10."""
    expected = contributions(model, loss, batch, axis)
    examples = measure(model, loss, batch, batch[0].shape[axis])
    assert (examples.reason, examples.uncovered, examples.coverage) == ("", {}, 1.0)
    found = examples.squares()
    assert set(found) == set(expected)
    for name, square in found.items():
        truth = expected[name].square().sum(1)
        floor = 1e-10 * float(truth.max()) + 1e-28
        torch.testing.assert_close(square, truth, rtol=1e-10, atol=floor, msg=lambda m, n=name: f"{n}: {m}")
    assert examples.judge(read(examples)) == {}
    return examples


def expected(rows: Tensor, weights: Tensor) -> tuple[float, float]:
    """tr Sigma and |G|^2 by their definitions, from all gradients g_i [n, numbers] and their weights in the update."""
    c = weights / weights.sum()
    mean = (c[:, None] * rows).sum(0)
    trace = (c * (rows - mean).square().sum(1)).sum() / (c * (1 - c)).sum()
    products = (rows @ rows.T) * c[:, None] * c
    square = (products.sum() - products.diagonal().sum()) / (1 - c.square().sum())
    return float(trace), float(square)


def every_gradient(model: nn.Module, loss: Loss, batch: tuple[Tensor, ...], names: list[str] | None = None) -> Tensor:
    """The gradient of each example, in one row each."""
    rows = contributions(model, loss, batch)
    return len(batch[0]) * torch.cat([row for name, row in rows.items() if names is None or name in names], dim=1)


def train(spool: Any, model: nn.Module, loss: Loss, batches: Any, probe: Any = None, **settings: Any) -> Any:
    """Train on lists of micro-batches, at rest unless a learning rate is given; return what was recorded."""
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.pop("lr", 0.0))
    weights, before = settings.pop("weights", None), settings.pop("before", lambda recorder: None)
    scaler = settings.get("scaler")
    probes = [probe or GradientNoiseScale(every(1))]
    with Recorder(model, optimizer, loss, probes, sink=spool.url, strict=True, **settings) as recorder:
        before(recorder)
        for pieces in batches:
            optimizer.zero_grad()
            for k, batch in enumerate(pieces):
                part = loss(model, batch) * (1 / len(pieces) if weights is None else weights[k])
                (part if scaler is None else scaler.scale(part)).backward()
                if len(pieces) > 1:
                    recorder.after_backward(batch)
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()
            recorder.after_step(pieces[-1])
    return spool()


@pytest.fixture
def oracle():
    return SimpleNamespace(
        PerExample=PerExample,
        named=named,
        cubic=cubic,
        contributions=contributions,
        measure=measure,
        read=read,
        check=check,
        expected=expected,
        every_gradient=every_gradient,
        train=train,
    )


@pytest.fixture(autouse=True)
def _double():
    """Float64, so that the tolerance leaves no room for a wrong formula."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
