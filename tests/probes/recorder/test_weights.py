"""Norms, updates and angles in a plain loop are those of the weights before and after the same step."""

import math

import pytest
import torch
from torch import nn

from learnmech.probes import Recorder, WeightDynamics, every


def test_norms_updates_and_angles_are_right_at_their_step(quartic, spool):
    class Matrix(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
            self.b = nn.Parameter(torch.tensor([12.0]))

        def forward(self, x):
            return (self.w * torch.tensor([[0.0, 1.0], [1.0, 0.0]])).sum() + self.b.sum() + 0 * x.sum()

    model = Matrix()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    seen = [[p.detach().clone() for p in model.parameters()]]
    with Recorder(model, optimizer, quartic.loss, [WeightDynamics(every(1))], sink=spool.url) as recorder:
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(torch.zeros(2))
            loss.backward()
            optimizer.step()
            recorder.after_step(torch.zeros(2), loss)
            seen.append([p.detach().clone() for p in model.parameters()])
    run = spool()
    assert run.values("weight_norm")[0] == pytest.approx(13.0)
    for step in range(3):
        w, after = (torch.cat([p.reshape(-1) for p in seen[at]]).double() for at in (step, step + 1))
        assert run.values("weight_norm")[step] == pytest.approx(float(w.norm()))
        assert run.values("weight_norm_sq")[step] == pytest.approx(float(w.square().sum()))
        assert run.values("update_norm")[step] == pytest.approx(float((after - w).norm()))
        assert run.values("relative_update")[step] == pytest.approx(float((after - w).norm() / w.norm()))
        w, after = (seen[at][0].reshape(-1).double() for at in (step, step + 1))
        cosine = float(w @ after / w.norm() / after.norm())
        assert run.values("angular_update", "w")[step] == pytest.approx(math.acos(cosine), rel=1e-6)
        g = torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
        invariance = float((w @ g).abs() / w.norm() / g.norm())
        assert run.values("scale_invariance", "w")[step] == pytest.approx(invariance, abs=1e-12)
    assert not run.all("weight_norm", "b"), "tensors with one dimension are not measured one by one"


def test_scale_invariant_tensors_are_certified_and_summarized(cross_entropy, spool):
    """A linear layer before a layer norm without affine part: the loss does not change with the scale of its weight."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 8, bias=False), nn.LayerNorm(8, eps=0.0, elementwise_affine=False), nn.Linear(8, 3)
    )
    optimizer = torch.optim.AdamW(
        [
            {"params": model[0].parameters(), "weight_decay": 0.1},
            {"params": model[2].parameters(), "weight_decay": 0.2},
        ],
        lr=1e-2,
    )
    with Recorder(model, optimizer, cross_entropy, [WeightDynamics(every(1))], sink=spool.url) as recorder:
        for _ in range(8):
            batch = (torch.randn(16, 6), torch.randint(0, 3, (16,)))
            optimizer.zero_grad()
            loss = cross_entropy(model, batch)
            loss.backward()
            recorder.after_backward(batch)
            optimizer.step()
            recorder.after_step(batch, loss)
    run = spool()
    assert list(run.values("angular_update", "scale_invariant")) == [4, 5, 6, 7], "five looks before the first"
    for step, value in run.values("angular_update", "scale_invariant").items():
        assert value == pytest.approx(run.values("angular_update", "0.weight")[step])
    assert max(run.values("scale_invariance", "0.weight").values()) < 1e-4
    assert min(run.values("scale_invariance", "2.weight").values()) > 1e-3
    # groups differ, so the decay of the group is said in its own scope, which laws look at first
    (_, decay), *_ = run.all("weight_decay")
    assert decay.value is None
    assert decay.status == "unsupported"
    assert run.values("weight_decay", "0.weight") == {0: 0.1}
    assert run.values("weight_decay", "2.weight") == {0: 0.2}
    assert run.values("weight_decay", "scale_invariant") == {4: 0.1}
    assert run.values("learning_rate") == {0: 0.01}
