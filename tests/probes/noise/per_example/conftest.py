"""The oracle: every example's own gradient by a loop of backward passes over batches of one; it knows no hook."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

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
    )


@pytest.fixture(autouse=True)
def _double():
    """Float64, so that the tolerance leaves no room for a wrong formula."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
