"""What is measured is what the optimizer moves, with the learning rate and the loss scale in force."""

import pytest
import torch
from torch import nn

from learnmech.probes import GradientNoiseScale, Recorder, Sharpness, Vitals, WeightDynamics, every


class Body(nn.Module):
    """Only `head` is given to the optimizer; `body` asks for gradients all the same and is a hundred times as sharp."""

    def __init__(self):
        super().__init__()
        self.head = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.body = nn.Parameter(torch.tensor([3.0]))

    def forward(self, x):
        return 2 * self.head.square().sum() + 200 * self.body.square().sum() + 0 * x.sum()


def test_parameters_outside_the_optimizer_take_no_part(spool):
    model = Body()
    optimizer = torch.optim.SGD([model.head], lr=0.01)
    probes = [Sharpness(every(1)), GradientNoiseScale(every(1)), WeightDynamics(every(1))]
    with Recorder(model, optimizer, lambda m, b: m(b), probes, sink=spool.url) as recorder:
        for _ in range(3):
            batch = torch.randn(8, 1)
            optimizer.zero_grad()
            model(batch).backward()
            norm = float(model.head.detach().norm())
            optimizer.step()
            recorder.after_step(batch)
    run = spool()
    assert list(run.values("sharpness").values()) == pytest.approx([4.0] * 3)  # H of the head is 4; of all it is 400
    assert run.values("weight_norm")[2] == pytest.approx(norm)
    assert run.values("grad_sq_norm")[2] == pytest.approx(16 * norm**2, rel=1e-5)
    assert model.body.grad is not None


@pytest.mark.parametrize("fused", [False, True])
def test_gradient_norms_are_free_of_the_loss_scale(fused, spool, mean_square):
    """A fused optimizer takes the scale out of the gradient itself, after everybody has seen it."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    exact = {}
    with Recorder(model, optimizer, mean_square, [Vitals(every(1))], sink=spool.url) as recorder:
        for step in range(3):
            batch = (torch.randn(8, 3), torch.randn(8, 1))
            optimizer.zero_grad()
            loss = mean_square(model, batch)
            parts = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
            exact[step] = float(torch.stack([part.norm() for part in parts]).norm())
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            recorder.after_step(batch, loss)
    assert spool().values("grad_norm") == pytest.approx(exact, rel=1e-5)
