"""Training in half precision: the probes record the curvature of the function, and say how they came by it.

Oracle: the same probes on the same weights, trained in float32 with a learning rate of zero.
"""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from learnmech.probes import (
    BatchSharpness,
    HessianEigenvalues,
    HessianSpectrum,
    LossChange,
    Recorder,
    Sharpness,
    SharpnessReading,
    every,
)

PLACES = [
    ("sharpness", ""),
    ("sharpness_rayleigh", ""),
    ("hessian_trace", ""),
    ("batch_curvature", ""),
    ("hessian_eigenvalue", "1"),
    ("update_sharpness", ""),
]


def record(url, dtype, dropout=0.0, steps=2):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Dropout(dropout), nn.Linear(12, 3))
    x, y = torch.randn(32, 8), torch.randint(0, 3, (32,))

    def loss_fn(model, batch):
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            z = model(batch[0])
        return cross_entropy(z.float(), batch[1])

    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    sharpness = Sharpness(every(1))
    probes = [sharpness, SharpnessReading(every(1), of=sharpness), HessianSpectrum(every(1)), LossChange(every(1))]
    probes += [BatchSharpness(every(1)), HessianEigenvalues(every(1), k=1)]
    with Recorder(model, optimizer, loss_fn, probes, sink=url) as recorder:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = loss_fn(model, (x, y))
            loss.backward()
            optimizer.step()
            recorder.after_step((x, y), loss)
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_probe_measures_the_function(dtype, recorded, tmp_path):
    record(f"spool:{tmp_path}/half", dtype)
    record(f"spool:{tmp_path}/full", None)
    half, full = recorded(tmp_path / "half"), recorded(tmp_path / "full")
    for observable, scope in PLACES:
        assert half.all(observable, scope)
        for (step, one), (other_step, other) in zip(
            half.all(observable, scope), full.all(observable, scope), strict=True
        ):
            assert step == other_step
            assert (one.status, other.status) == ("ok", "ok"), (observable, one.reason)
            assert "double_backward_in_float32" in one.method
            assert "float32" not in other.method
            # the update itself was made from a gradient in half precision
            assert one.value == pytest.approx(other.value, rel=2e-2 if observable == "update_sharpness" else 1e-4)


def test_what_the_optimizer_sees_beside_the_loss_is_said_once(spool):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    model.weight.register_hook(lambda g: g.clamp(-0.1, 0.1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loss_fn = lambda model, x: model(x).square().mean()
    with Recorder(model, optimizer, loss_fn, [Sharpness(every(1))], sink=spool.url) as recorder:
        for _ in range(25):
            x = torch.randn(8, 3)
            optimizer.zero_grad()
            loss_fn(model, x).backward()
            optimizer.step()
            recorder.after_step(x)
    said = [event.message for event in spool().events if "hooks on weight may change the gradient" in event.message]
    assert len(said) == 1
