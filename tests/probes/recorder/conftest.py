"""What tests of `Recorder` in plain loops share: losses, and a training whose sharpness has a closed form."""

import types

import pytest
import torch
from torch import nn

from learnmech.probes import Recorder


def _mean_square(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()


def _cross_entropy(model, batch):
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)


class Quartic(nn.Module):
    """L(w) = sum w^4 / 12, so that H = diag(w^2): the sharpness is the largest squared weight, another at each step."""

    def __init__(self, values=(1.0, -2.0, 1.5)):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(values, dtype=torch.float64))

    def forward(self, x):
        return self.w.pow(4).sum() / 12 + 0 * x.sum()


def _quartic_loss(model, batch):
    return model(batch)


def _descend(probes, sink, steps=5, lr=0.05, after_backward=True, scheduler=None, **settings):
    """Descend the quartic; return w_0 ... w_steps."""
    model = Quartic()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    schedule = None if scheduler is None else scheduler(optimizer)
    batch, weights = torch.zeros(4, 1), [model.w.detach().clone()]
    with Recorder(model, optimizer, _quartic_loss, probes, sink=sink, **settings) as recorder:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = _quartic_loss(model, batch)
            loss.backward()
            if after_backward:
                recorder.after_backward(batch)
            optimizer.step()
            if schedule is not None:
                schedule.step()
            recorder.after_step(batch, loss)
            weights.append(model.w.detach().clone())
    return weights


@pytest.fixture
def mean_square():
    """`mean_square(model, (x, y))`: the loss of a regression."""
    return _mean_square


@pytest.fixture
def cross_entropy():
    """`cross_entropy(model, (x, y))`: the loss of a classification."""
    return _cross_entropy


@pytest.fixture
def quartic():
    """`quartic.model()`, its `quartic.loss`, and `quartic.descend(probes, sink)`, which returns w_0 ... w_steps."""
    return types.SimpleNamespace(model=Quartic, loss=_quartic_loss, descend=_descend)
