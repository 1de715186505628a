"""Sharpness in a plain loop is that of the weights, the batch and the optimizer at its step."""

import pytest
import torch
from torch import nn

from learnmech.probes import Recorder, Sharpness, every, is_probing


def test_sharpness_is_the_closed_form_at_its_step(quartic, spool):
    weights = quartic.descend([Sharpness(every(2))], spool.url, steps=7)
    run = spool()
    assert list(run.values("sharpness")) == [2, 4, 6]
    for step, m in run.all("sharpness"):
        assert m.value == pytest.approx(float(weights[step].square().max()), rel=1e-6)
        assert m.status == "ok"
        assert 0 <= m.stderr < 1e-3 * m.value
        assert m.cost > 0
    assert run.values("deterministic_loss") == {2: 1.0}
    assert run.all("probe_cost", "sharpness")


def test_preconditioned_sharpness_uses_the_optimizer_at_the_same_step(quartic, spool):
    """P_t of Adam is computed here from the gradients alone: g_t = w^3/3, v_t their exponential average."""
    model = quartic.model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.9, 0.99), eps=1e-8)
    batch, v, expected = torch.zeros(4, 1), torch.zeros(3, dtype=torch.float64), {}
    with Recorder(model, optimizer, quartic.loss, [Sharpness(every(1), tol=1e-6)], sink=spool.url) as recorder:
        for step in range(1, 5):
            optimizer.zero_grad()
            loss = quartic.loss(model, batch)
            loss.backward()
            v = 0.99 * v + 0.01 * (model.w.detach() ** 3 / 3) ** 2
            optimizer.step()
            recorder.after_step(batch, loss)
            scale = (1 - 0.9**step) * ((v / (1 - 0.99**step)).sqrt() + 1e-8)
            expected[step] = float((model.w.detach().square() / scale).max())
    found = spool().values("sharpness_preconditioned")
    assert found == pytest.approx(expected, rel=1e-5)


def test_after_running_out_of_memory_the_batch_is_taken_in_parts(mean_square, spool):
    """A loss that only fits two examples while it is probed: the full Hessian is still that of the whole batch."""

    def loss_fn(model, batch):
        if is_probing() and len(batch[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return mean_square(model, batch)

    model = nn.Linear(3, 1, bias=False).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = {}
    with Recorder(model, optimizer, loss_fn, [Sharpness(every(1), tol=1e-6)], sink=spool.url) as recorder:
        for step in range(1, 5):
            x = torch.randn(7, 3, dtype=torch.float64)
            batch = (x, torch.randn(7, 1, dtype=torch.float64))
            optimizer.zero_grad()
            loss_fn(model, batch).backward()
            optimizer.step()
            recorder.after_step(batch)
            expected[step] = float(torch.linalg.eigvalsh(2 * x.T @ x / 7)[-1])
    first, *rest = spool().all("sharpness")
    assert (first[0], first[1].status) == (1, "failed")
    assert [(step, m.method) for step, m in rest] == [(step, "double_backward_in_4_parts") for step in (2, 3, 4)]
    for step, m in rest:
        assert m.value == pytest.approx(expected[step], rel=1e-6)
