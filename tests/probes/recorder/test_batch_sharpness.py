"""Batch sharpness is the mean of closed-form Rayleigh quotients at the weights before each update.

For linear regression with one output, L = |Xw - y|^2 / n has g = 2 X'(Xw - y) / n and H = 2 X'X / n: written down here.
"""

import math
import statistics

import pytest
import torch
from scipy import stats
from torch import nn

from learnmech.laws.statistics import inflation
from learnmech.probes import Recorder, every
from learnmech.probes.batch_sharpness import BatchSharpness


def descend(mean_square, probe, url, steps, *, lr=0.05, seed=0, batch=8):
    """Train linear regression on fresh batches; return (g'Hg, g'g) of each at the weights before its update."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(4, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0, 0.5, 3.0]]))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    expected = []
    with Recorder(model, optimizer, mean_square, [probe], sink=url) as recorder:
        for _ in range(steps):
            x = torch.randn(batch, 4, generator=generator).double() * torch.tensor([2.0, 1.0, 1.0, 0.5])
            y = torch.randn(batch, 1, generator=generator).double()
            w = model.weight.detach().clone().T
            g, h = 2 * x.T @ (x @ w - y) / batch, 2 * x.T @ x / batch
            expected.append((float(g.T @ h @ g), float(g.T @ g)))
            optimizer.zero_grad()
            loss = mean_square(model, (x, y))
            loss.backward()
            recorder.after_backward((x, y))
            optimizer.step()
            recorder.after_step((x, y), loss)
    return expected


def test_it_is_the_mean_of_closed_forms_with_their_standard_error(mean_square, spool):
    expected = descend(mean_square, BatchSharpness(every(1), window=5), spool.url, 9)
    run = spool()
    for step, (curvature, square) in enumerate(expected):
        assert run.values("batch_curvature")[step] == pytest.approx(curvature, rel=1e-10)
        assert run.values("batch_grad_sq_norm")[step] == pytest.approx(square, rel=1e-10)
    for step, m in run.all("batch_sharpness"):
        window = [curvature / square for curvature, square in expected[max(step - 4, 0) : step + 1]]
        n = len(window)
        mean = sum(window) / n
        assert m.value == pytest.approx(mean, rel=1e-10)
        assert m.method == "double_backward_window_of_5"
        if n < 3:
            assert (m.status, m.stderr) == ("undetermined", None)
            assert f"{n} of at least 3" in m.reason
        else:
            assert m.status == "ok"
            assert m.reason == ("" if n == 5 else f"the mean of the first {n} measurements")
            # scipy's skewness and quantile, in the formula of Johnson (1978)
            counted = max(n / inflation(window), 2.0)
            t, width = (float(stats.t.ppf(0.975, max(int(d) - 1, 2))) for d in (counted, n))
            reach = t + abs(stats.skew(window, bias=False)) * (1 + 2 * width**2) / (12 * math.sqrt(counted))
            spread = statistics.stdev(window) / math.sqrt(counted)
            assert m.stderr == pytest.approx(reach / 1.959964 * spread, rel=1e-3)


def test_it_measures_on_schedule_from_the_first_step_on(mean_square, spool):
    descend(mean_square, BatchSharpness(every(3)), spool.url, 8)
    assert list(spool().values("batch_sharpness")) == [0, 3, 6]


def test_the_error_bar_holds_the_mean_over_many_batches(mean_square, recorded, tmp_path):
    """At weights that stay: the mean of 16 batches against that of 20 000 others, computed here, in 24 repeats.

    95 % intervals miss it in no more than three of 24 with a probability of 97 %.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 8, 4, generator=generator).double() * torch.tensor([2.0, 1.0, 1.0, 0.5])
    y = torch.randn(20_000, 8, 1, generator=generator).double()
    w = torch.tensor([[1.0], [-2.0], [0.5], [3.0]]).double()
    g = 2 * x.mT @ (x @ w - y) / 8
    truth = float(((2 / 8) * (x @ g).square().sum(dim=(1, 2)) / g.square().sum(dim=(1, 2))).mean())
    hits = 0
    for seed in range(24):
        descend(mean_square, BatchSharpness(every(1)), f"spool:{tmp_path}/{seed}", 16, lr=0.0, seed=100 + seed)
        _, last = recorded(tmp_path / str(seed)).all("batch_sharpness")[-1]
        hits += abs(last.value - truth) <= 1.96 * last.stderr
    assert hits >= 21


def test_the_batch_is_new_to_the_weights(mean_square, spool):
    """Near the edge an update leaves its own batch another gradient than it found: what is measured is the first."""
    expected = descend(mean_square, BatchSharpness(every(1)), spool.url, 4, lr=0.3, batch=2)
    run = spool()
    found = [run.values("batch_grad_sq_norm")[step] for step in range(4)]
    assert found == pytest.approx([square for _, square in expected], rel=1e-9)


def test_at_a_minimum_there_is_no_quotient(mean_square, spool):
    model = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.eye(2)
    with Recorder(model, optimizer, mean_square, [BatchSharpness(every(1))], sink=spool.url) as recorder:
        batch = (x, model(x).detach())
        for _ in range(2):
            optimizer.zero_grad()
            mean_square(model, batch).backward()
            optimizer.step()
            recorder.after_step(batch)
    run = spool()
    assert [m.value for _, m in run.all("batch_curvature")] == [0.0, 0.0]
    assert [(m.value, m.status, m.reason) for _, m in run.all("batch_sharpness")] == [
        (None, "undetermined", "the gradient is zero")
    ] * 2


def test_a_given_batch_is_measured_instead_and_that_is_said(mean_square, spool):
    x = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0])).double()
    y = torch.zeros(4, 1).double()
    descend(mean_square, BatchSharpness(every(1), batch=(x, y)), spool.url, 1)
    ((_, m),) = spool().all("batch_curvature")
    w = torch.tensor([1.0, -2.0, 0.5, 3.0]).double()
    h = torch.tensor([1.0, 4.0, 9.0, 16.0]).double() / 2
    assert m.value == pytest.approx(float((h * (h * w) ** 2).sum()), rel=1e-12)
    assert m.method == "double_backward_on_a_given_batch"


def test_a_window_without_an_error_bar_is_refused():
    with pytest.raises(ValueError, match="expected a whole number of 3 or more"):
        BatchSharpness(window=2)
