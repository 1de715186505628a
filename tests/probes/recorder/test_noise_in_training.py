"""The noise estimates stay unbiased while the weights move: an update follows the noise of its own batch."""

import math

import pytest
import torch
from torch import nn

from learnmech.probes import GradientNoiseScale, Recorder, every

EXAMPLES, BATCH, RATE = 20_000, 32, 0.05


class Compared(GradientNoiseScale):
    """Sets each measurement beside the exact numbers at the same weights, from all per-example gradients."""

    def __init__(self, x, y, schedule):
        super().__init__(schedule, source="split")
        self.x, self.y, self.rows = x, y, []

    def measure(self, view):
        found = {m.observable: m.value for m in super().measure(view)}
        if found:
            w = view.parameters["weight"].detach()[0]
            gradients = self.x * (self.x @ w - self.y)[:, None]
            mean = gradients.mean(dim=0)
            trace = float((gradients - mean).square().sum()) / (EXAMPLES - 1)
            self.rows.append((found["grad_sq_norm"] - float(mean.square().sum()), found["noise_trace"] / trace - 1))
        return []


@pytest.mark.parametrize("after_backward", [False, True])
def test_the_batch_just_used_is_not_measured_at_the_weights_it_made(after_backward, spool):
    """At a learning rate of a third of the edge |g|^2 of that batch would be low by 0.13: nine standard errors here."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(EXAMPLES, 10, generator=generator) * torch.tensor([2.5, *[0.5] * 9])
    y = x @ torch.randn(10, generator=generator) + torch.randn(EXAMPLES, generator=generator)
    model = nn.Linear(10, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)

    def loss_fn(model, batch):
        return 0.5 * (model(batch[0])[:, 0] - batch[1]).square().mean()

    probe = Compared(x, y, every(20, start=300))
    with Recorder(model, optimizer, loss_fn, [probe], sink=spool.url) as recorder:
        for _ in range(6000):
            index = torch.randint(0, EXAMPLES, (BATCH,), generator=generator)
            batch = (x[index], y[index])
            optimizer.zero_grad()
            loss_fn(model, batch).backward()
            if after_backward:
                recorder.after_backward(batch)
            optimizer.step()
            recorder.after_step(batch)
    assert len(probe.rows) > 250
    for column in torch.tensor(probe.rows, dtype=torch.float64).T:
        assert abs(float(column.mean())) < 3 * float(column.std()) / math.sqrt(len(column))
