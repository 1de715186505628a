"""A fused optimizer takes the loss scale out of the gradient itself, inside its step."""

import pytest
import torch
from torch import nn

from learnmech.probes import GradientNoiseScale, Recorder, Vitals, WeightDynamics, every

SCALE = 1024.0
LEFT_OUT = 7
"""Step whose gradient overflows: the scaler leaves its update out."""


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_gradients_are_recorded_without_the_scale(fused, told, spool):
    """The oracle divides what is in `.grad` before the step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    loss_fn = lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])
    probes = [Vitals(every(1)), WeightDynamics(every(1)), GradientNoiseScale(every(1), source="pieces")]
    expected = []
    with Recorder(model, optimizer, loss_fn, probes, sink=spool.url, scaler=scaler, accumulation=2) as recorder:
        for step in range(12):
            optimizer.zero_grad()
            for piece in range(2):
                batch = (torch.randn(8, 6), torch.randint(3, (8,)))
                loss = loss_fn(model, batch) / 2
                scaler.scale(loss).backward()
                if (step, piece) == (LEFT_OUT, 1):
                    next(model.parameters()).grad[0, 0] = torch.inf
                if told:
                    recorder.after_backward(batch)
            square = sum((p.grad / SCALE).square().sum() for p in model.parameters())
            expected.append(float(square.sqrt()))
            scaler.step(optimizer)
            scaler.update()
            recorder.after_step(batch, loss)
            if step == LEFT_OUT:
                scaler.update(SCALE)
    run = spool()
    norms = {step: m for step, m in run.all("grad_norm") if m.scope == ""}
    for step, norm in enumerate(expected):
        if step != LEFT_OUT:
            assert norms[step].value == pytest.approx(norm, rel=1e-5), step
    if LEFT_OUT in norms:  # else nothing was seen: no hook of a step that is left out is called
        assert norms[LEFT_OUT].status != "ok"
    assert run.values("update_norm").get(LEFT_OUT, 0.0) == 0.0
    noise = [(step, m) for step, m in run.all("grad_sq_norm") if m.scope == "" and m.status == "ok"]
    assert len(noise) >= 8
    assert all(abs(m.value) < 10 * max(expected[:LEFT_OUT]) ** 2 for _, m in noise), (
        "a scale left in it is a million times more"
    )
