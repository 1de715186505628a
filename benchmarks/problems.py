"""What is measured: a network at a step of its training and one fixed batch, the same for every tool."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.models import Batch, Task, loss_fn

MEASURED = 12345  # seed of the batch that is measured on; training draws others


@dataclass(frozen=True)
class Problem:
    """A loss at one point: the mean cross-entropy of a network on a batch, in training mode.

    Attributes:
        name: Name of the network.
        step: Steps of training behind it.
        network: The network; measured on copies only.
        batch: Inputs and targets.
    """

    name: str
    step: int
    network: nn.Module
    batch: Batch

    def model(self) -> nn.Module:
        """Return a fresh copy, in training mode: what a tool leaves behind stays its own."""
        return copy.deepcopy(self.network).train()

    def precise(self) -> tuple[nn.Module, Batch]:
        """Return a copy of network and batch in float64."""
        inputs, targets = self.batch
        return self.model().double(), (inputs.double() if inputs.is_floating_point() else inputs, targets)


def trajectory(
    name: str, task: Task, *, steps: int, every: int, device: str, tell: Callable[[], None] = lambda: None
) -> list[Problem]:
    """Train once and return the problem at every so many steps, the first and the last included."""
    torch.manual_seed(0)
    model = task.make().to(device).train()
    optimizer = task.optimizer(model)
    batches = task.data(task.batch, 0)
    fixed = moved(next(task.data(task.batch, MEASURED)), device)
    found = []
    for step in range(steps + 1):
        if step % every == 0:
            found.append(Problem(name, step, copy.deepcopy(model), fixed))
            tell()
        optimizer.zero_grad()
        loss_fn(model, moved(next(batches), device)).backward()
        optimizer.step()
    return found


def moved(batch: Batch, device: str) -> Batch:
    """Return a batch on a device."""
    return batch[0].to(device), batch[1].to(device)


def math_attention() -> AbstractContextManager[Any]:
    """Attention by plain matrix products: the only kernel that can be differentiated twice."""
    return sdpa_kernel(SDPBackend.MATH)


def size(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in model.parameters())


def flat(tensors: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """Lay tensors one after another."""
    return torch.cat([t.reshape(-1) for t in tensors])
