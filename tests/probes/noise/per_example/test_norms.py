"""The factor from norms to all parameters: closed form, calibration of its error bar, and what it refuses.

The oracle of the estimates in training is an exact measurement of the same batch, from gradients computed one by one.
"""

import math

import numpy as np
import pytest
import torch
from torch import nn

from learnmech.probes import GradientNoiseScale, Recorder, every
from learnmech.probes.noise.choice import FIT_EVERY
from learnmech.probes.noise.per_example import METHOD, NormFactor, norm_parameters
from learnmech.probes.noise.per_example.norms import FITTED


def test_norm_parameters():
    class Own(nn.LayerNorm):
        def forward(self, x):
            return x * self.weight

    model = nn.Sequential(
        nn.Linear(4, 4), nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.RMSNorm(4), nn.BatchNorm1d(4), Own(4)
    )
    found = norm_parameters(model, dict(model.named_parameters()))
    assert set(found) == {"1.weight", "1.bias", "2.weight", "2.bias", "3.weight"}


def test_squares_of_the_norms_alone(oracle):
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 6), nn.RMSNorm(6))
    x = torch.randn(5, 3, 4)
    norms = norm_parameters(model, oracle.named(model))
    examples = oracle.measure(model, oracle.cubic, (x,), 5, parameters=norms)
    truth = oracle.contributions(model, oracle.cubic, (x,))
    assert set(examples.squares()) == set(norms)
    assert (examples.coverage, examples.judge(oracle.read(examples))) == (1.0, {})
    for name, square in examples.squares().items():
        torch.testing.assert_close(square, truth[name].square().sum(1), rtol=1e-10, atol=0)


def test_a_factor_that_falls_by_so_many_percent_a_step():
    factor = NormFactor()
    for step in range(0, 5 * FITTED, 5):
        assert factor.append(step, 7.0 * 0.98**step * (1 + step), 1.0 + step)
    found = factor.estimate(40, 2.0)
    assert found.value == pytest.approx(2.0 * 7.0 * 0.98**40)
    assert found.stderr == pytest.approx(0.0, abs=1e-9)


def test_the_error_is_that_of_a_new_point_on_a_line():
    """By numpy's least squares, and the covariance that it states for the coefficients."""
    steps = np.array([0.0, 10.0, 15.0, 30.0, 40.0, 45.0])
    logs = np.array([1.0, 1.1, 0.8, 0.7, 0.75, 0.5])
    factor = NormFactor()
    for step, log in zip(steps, logs, strict=True):
        factor.append(step, math.exp(log), 1.0)
    coefficients, covariance = np.polyfit(steps, logs, 1, cov=True)
    scatter = ((logs - np.polyval(coefficients, steps)) ** 2).sum() / 4
    spread = math.sqrt(scatter + np.array([50.0, 1.0]) @ covariance @ np.array([50.0, 1.0]))
    found = factor.estimate(50, 3.0)
    assert found.value == pytest.approx(3.0 * math.exp(np.polyval(coefficients, 50.0)))
    assert found.stderr == pytest.approx(found.value * spread * 2.776 / 1.959964, rel=1e-3)


def test_error_bars_cover():
    """a = 5 b 0.99^step e^(0.05 normal): 500 predictions of new values, within the 95 % interval in 92 to 98 %."""
    generator = torch.Generator().manual_seed(0)
    inside = 0
    for _ in range(500):
        logs = 0.05 * torch.randn(FITTED + 1, generator=generator, dtype=torch.float64)
        factor = NormFactor()
        for k, log in enumerate(logs[:-1].tolist()):
            factor.append(4 * k, 5.0 * 0.99 ** (4 * k) * math.exp(log), 1.0)
        last = 4 * FITTED - 2
        found = factor.estimate(last, 1.0)
        exact = 5.0 * 0.99**last * math.exp(float(logs[-1]))
        inside += abs(math.log(found.value / exact)) <= 1.96 * found.stderr / found.value
    assert 0.92 * 500 <= inside <= 0.98 * 500


def test_what_it_refuses():
    factor = NormFactor()
    assert not factor.append(0, math.nan, 1.0)
    assert not factor.append(0, 1.0, 0.0)
    for step in range(FITTED - 1):
        factor.append(step, (1.0, 9.0)[step % 2], 1.0)
    assert "the factor needs 6" in factor.estimate(9, 1.0).reason
    factor.append(FITTED, 9.0, 1.0)
    assert "known to" in factor.estimate(9, 1.0).reason
    assert "known to 1.01e+304" in factor.estimate(10**7, 1.0).reason, "where e to the error is no number"
    assert "no noise" in factor.estimate(9, 0.0).reason
    assert factor.estimate(9, 1.0).value is None


class Blocks(nn.Module):
    """Two normalized layers; a recurrent one in front, if asked for, that hooks cannot look into."""

    def __init__(self, recurrent=False):
        super().__init__()
        self.first = nn.LSTM(4, 8, batch_first=True) if recurrent else nn.Linear(4, 8)
        self.norm, self.second = nn.LayerNorm(8), nn.Linear(8, 8)
        self.last, self.head = nn.LayerNorm(8), nn.Linear(8, 2)

    def forward(self, x):
        h = self.first(x[:, None])[0][:, -1] if isinstance(self.first, nn.LSTM) else self.first(x)
        return self.head(self.last(h + torch.tanh(self.second(self.norm(h)))))


def loss(model, batch):
    return (model(batch[0]) - batch[1]).square().sum(1).mean()


def batches(steps, generator):
    for _ in range(steps):
        x = torch.randn(16, 4, generator=generator)
        yield [(x, torch.stack([x.sum(1).sin(), x[:, 0]], 1) + torch.randn(16, 2, generator=generator))]


class Compared(GradientNoiseScale):
    """Sets what was measured on the norms beside the exact numbers of the same batch at the same weights."""

    def __init__(self, oracle):
        super().__init__(every(1), source="norm_layers")
        self.oracle, self.exact = oracle, {}

    def prepare(self, view):
        super().prepare(view)
        self.weights = {name: p.detach().clone() for name, p in view.parameters.items()}

    def measure(self, view):
        found = super().measure(view)
        now = {name: p.detach().clone() for name, p in view.parameters.items()}
        with torch.no_grad():
            for name, p in view.parameters.items():
                p.copy_(self.weights[name])
        rows = self.oracle.every_gradient(view.model, loss, view.batch)
        self.exact[view.step] = self.oracle.expected(rows, torch.ones(len(rows)))
        with torch.no_grad():
            for name, p in view.parameters.items():
                p.copy_(now[name])
        return found


def test_estimates_hold_what_an_exact_measurement_would_have_given(oracle, spool):
    """In a training of 120 steps whose factor drifts: 90 % of the 95 % intervals or more, and no bias above 10 %."""
    torch.manual_seed(0)
    probe = Compared(oracle)
    run = oracle.train(spool, Blocks(), loss, batches(120, torch.Generator().manual_seed(1)), probe, lr=0.02)
    marked = {step: m for step, m in run.all("noise_trace") if m.method == METHOD and m.value is not None}
    usual = [step for step in range(FITTED, 120) if step % FIT_EVERY]
    assert list(marked) == usual
    squares = {step: m.value for step, m in run.all("grad_sq_norm")}
    errors = []
    for step, found in marked.items():
        trace, square = probe.exact[step]
        errors.append((found.value / trace - 1, abs(found.value - trace) <= 1.96 * found.stderr))
        # |g|^2 is at hand: an error of tr Sigma goes into |G|^2 with 1 / B
        assert squares[step] - square == pytest.approx((trace - found.value) / 16, rel=1e-6, abs=1e-9)
    off, inside = torch.tensor([float(e) for e, _ in errors]), [i for _, i in errors]
    assert abs(float(off.mean())) < 0.1
    assert float(off.abs().median()) < 0.25
    assert sum(inside) >= 0.9 * len(inside)
    assert {m.method for _, m in run.all("noise_scale")} & {METHOD} == set(), "of exact measurements alone"


def test_exact_by_cutting_where_single_examples_do_not_tell(oracle, spool):
    torch.manual_seed(0)
    probe = GradientNoiseScale(every(1), source="norm_layers")
    run = oracle.train(spool, Blocks(recurrent=True), loss, batches(24, torch.Generator().manual_seed(1)), probe)
    found = [m.method for _, m in run.all("noise_trace")]
    assert set(found) == {"split_batch_in_4", METHOD}
    assert found[-4:].count(METHOD) == 3
    (notice,) = [event.message for event in run.of_kind("probe_notice")]
    assert "recurrent" in notice


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.Linear(4, 2), "no LayerNorm"),
        (lambda: nn.Sequential(nn.Linear(4, 2), nn.LayerNorm(2), nn.BatchNorm1d(2)), "BatchNorm1d"),
    ],
)
def test_models_that_it_is_not_for(spool, make, reason):
    model, probe = make(), GradientNoiseScale(every(1), source="norm_layers")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with Recorder(model, optimizer, loss, [probe], sink=spool.url) as recorder:
        for (batch,) in batches(3, torch.Generator().manual_seed(1)):
            loss(model, batch).backward()
            optimizer.step()
            recorder.after_step(batch)
    (refusal,) = [m for _, m in spool().all("noise_trace") if m.value is None]
    assert refusal.status == "unsupported"
    assert reason in refusal.reason


def test_updates_of_several_pieces_need_no_proxy(spool):
    probe = GradientNoiseScale(every(1), source="norm_layers")
    model, ((batch,),) = Blocks(), list(batches(1, torch.Generator().manual_seed(1)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with Recorder(model, optimizer, loss, [probe], sink=spool.url, accumulation=2) as recorder:
        for _ in range(2):
            loss(model, batch).backward()
            recorder.after_backward(batch)
        optimizer.step()
        recorder.after_step(batch)
    (refusal,) = [m for _, m in spool().all("noise_trace")]
    assert 'Use source="pieces"' in refusal.reason
