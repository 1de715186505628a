"""The factor from norms to all parameters: closed form, calibration of its error bar, and what it refuses."""

import math

import pytest
import torch
from torch import nn

from learnmech.probes.noise.per_example import NormFactor, norm_parameters


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


def test_exact_proportion():
    factor = NormFactor()
    assert factor.estimate(2.0).value is None
    for b in (1.0, 2.0, 3.0, 4.0):
        assert factor.append(7 * b, b)
    found = factor.estimate(2.0)
    assert found.value == pytest.approx(14.0)
    assert found.stderr == pytest.approx(0.0, abs=1e-6)
    assert factor.estimate(2.0, stderr=0.1).stderr == pytest.approx(0.7)


def test_the_error_has_two_parts():
    """Of the factor, and of the scatter of a - f b, which grows as b does; in closed form."""
    pairs = torch.tensor([[9.0, 1.0], [22.0, 2.0], [27.0, 3.0], [44.0, 4.0], [49.0, 5.0]], dtype=torch.float64)
    factor = NormFactor(half_life=1e9)
    for a, b in pairs.tolist():
        factor.append(a, b)
    f = pairs[:, 0].mean() / pairs[:, 1].mean()
    spread = (pairs[:, 0] - f * pairs[:, 1]).var() * (6.0 / 3.0) ** 2
    truth = (spread + (6.0 * factor.factor.stderr) ** 2).sqrt()
    assert factor.estimate(6.0).stderr == pytest.approx(float(truth), rel=1e-6)


def test_error_bars_cover():
    """A known law a = 5 b (1 + 20 % noise): 500 predictions of new values, within their 95 % interval in 92 to 98 %."""
    generator = torch.Generator().manual_seed(0)
    inside = 0
    for _ in range(500):
        b = 1 + torch.rand(25, generator=generator, dtype=torch.float64)
        a = 5 * b * (1 + 0.2 * torch.randn(25, generator=generator, dtype=torch.float64))
        factor = NormFactor(half_life=1e9)
        for pair in zip(a[:-1].tolist(), b[:-1].tolist(), strict=True):
            factor.append(*pair)
        found = factor.estimate(float(b[-1]))
        inside += abs(found.value - float(a[-1])) <= 2.07 * found.stderr  # t with 23 degrees of freedom
    assert 0.92 * 500 <= inside <= 0.98 * 500


def test_what_it_refuses():
    factor = NormFactor()
    assert not factor.append(math.nan, 1.0)
    for a, b in ((1.0, 1.0), (-1.0, 2.0), (2.0, 0.5), (-2.0, 1.0)):
        factor.append(a, b)
    found = factor.estimate(1.0)
    assert found.value is None
    assert "not resolved" in found.reason
    factor.clear()
    for b in (1.0, 2.0, 3.0, 4.0):
        factor.append(7 * b, b)
    assert "not finite" in factor.estimate(math.inf).reason
