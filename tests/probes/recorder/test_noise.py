"""Gradient noise in a plain loop: right against all per-example gradients, whatever the batches look like."""

import math

import pytest
import torch
from torch import nn

from learnmech.probes import GradientNoiseScale, Recorder, every


def test_noise_agrees_with_all_per_example_gradients(mean_square, spool):
    """The oracle is the covariance of per-example gradients, computed one by one at weights that do not move."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(2000, 4, generator=generator), torch.randn(2000, 1, generator=generator)
    y = y + x.sum(dim=1, keepdim=True)
    model = nn.Linear(4, 1)
    with torch.no_grad():
        errors = model(x) - y
        gradients = torch.cat([2 * errors * x, 2 * errors], dim=1).double()
        exact_trace = float(gradients.var(dim=0, unbiased=True).sum())
        exact_square = float(gradients.mean(dim=0).square().sum())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    probes = [GradientNoiseScale(every(1), source="split")]
    with Recorder(model, optimizer, mean_square, probes, sink=spool.url) as recorder:
        for _ in range(200):
            index = torch.randint(0, 2000, (30,), generator=generator)  # 30 is not a multiple of the pieces
            batch = (x[index], y[index])
            optimizer.zero_grad()
            mean_square(model, batch).backward()
            optimizer.step()
            recorder.after_step(batch)
    run = spool()

    def consistent(observable, exact):
        values = torch.tensor(list(run.values(observable).values()), dtype=torch.float64)
        error = float(values.std() / math.sqrt(len(values)))
        assert abs(float(values.mean()) - exact) < 3 * error, (observable, float(values.mean()), exact, error)
        assert error < 0.1 * exact

    consistent("noise_trace", exact_trace)
    consistent("noise_trace_between", exact_trace)
    consistent("grad_sq_norm", exact_square)
    step, scale = run.all("noise_scale")[-1]
    assert step == 199
    assert abs(scale.value - exact_trace / exact_square) < 3 * scale.stderr
    assert run.all("noise_trace")[-1][1].method == "split_batch_in_4"


def test_a_batch_that_is_the_data_set_has_its_gradient_exactly(mean_square, spool):
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    batch = (torch.randn(12, 4), torch.randn(12, 1))
    probes = [GradientNoiseScale(every(1))]
    with Recorder(model, optimizer, mean_square, probes, sink=spool.url, dataset_size=12) as recorder:
        mean_square(model, batch).backward()
        exact = sum(float(p.grad.square().sum()) for p in model.parameters())
        optimizer.step()
        recorder.after_step(batch)
    assert spool().values("grad_sq_norm")[0] == pytest.approx(exact, rel=1e-5)


def test_noise_of_a_small_or_odd_batch(mean_square, spool):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    probes = [GradientNoiseScale(every(1), source="split")]
    with Recorder(model, optimizer, mean_square, probes, sink=spool.url) as recorder:
        for size in (8, 3, 1, 8, 1, 1, 1):
            batch = (torch.randn(size, 2), torch.randn(size, 1))
            optimizer.zero_grad()
            mean_square(model, batch).backward()
            optimizer.step()
            recorder.after_step(batch)
    run = spool()
    measured = [(step, m.method) for step, m in run.all("noise_trace") if m.status == "ok"]
    assert measured == [(0, "split_batch_in_4"), (1, "split_batch_in_2"), (3, "split_batch_in_4")]
    refusal = run.all("noise_trace")[-1]
    assert refusal[0] == 6
    assert refusal[1].status == "unsupported"
    assert "Use larger batches" in refusal[1].reason


def test_batches_that_cannot_be_cut_need_a_split(mean_square, spool):
    def loss_fn(model, batch):
        return mean_square(model, (batch["x"], batch["y"])) * batch["table"].mean()

    def split(batch, pieces):
        parts = zip(batch["x"].tensor_split(pieces), batch["y"].tensor_split(pieces), strict=True)
        return [{"x": x, "y": y, "table": batch["table"]} for x, y in parts]

    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    probes = [GradientNoiseScale(every(1)), GradientNoiseScale(every(1), split=split, name="split")]
    with Recorder(model, optimizer, loss_fn, probes, sink=spool.url) as recorder:
        for _ in range(3):
            batch = {"x": torch.randn(8, 2), "y": torch.randn(8, 1), "table": torch.ones(5)}
            loss_fn(model, batch).backward()
            optimizer.step()
            recorder.after_step(batch)
    run = spool()
    assert [m.status for _, m in run.all("noise_trace")] == ["unsupported", "ok", "ok", "ok"]
    assert "split=" in run.all("noise_trace")[0][1].reason
