"""What a noise scale says of batch size, against the quadratic model minimized and simulated by other means."""

import math

import numpy as np
import pytest
import torch

from learnmech.laws.batch_size import (
    batch_for_overhead,
    break_even_batch,
    effective_learning_rate,
    examples_needed,
    examples_ratio,
    expected_loss_change,
    optimal_learning_rate,
    propagated,
    speedup,
    steps_needed,
    temperature,
)
from learnmech.laws.statistics import Interval

SQUARE, CURVATURE, NOISE_CURVATURE = 3.0, 6.0, 480.0  # |G|^2, G'HG, tr(H Sigma)
SCALE = NOISE_CURVATURE / CURVATURE  # B_noise


def gain(rate, batch):
    return -expected_loss_change(rate, batch, SQUARE, CURVATURE, NOISE_CURVATURE)


@pytest.mark.parametrize("batch", [1, 20, 80, 1000])
def test_best_learning_rate_and_its_gain_are_those_of_a_search(batch):
    rates = np.linspace(1e-5, 1.0, 200_001)
    gains = gain(rates, batch)
    best, noiseless = rates[gains.argmax()], rates[gain(rates, 1e12).argmax()]
    assert optimal_learning_rate(batch, SCALE, noiseless) == pytest.approx(best, rel=1e-2)
    # as many steps are needed as one of them is worth less
    assert steps_needed(batch, SCALE) == pytest.approx(gain(rates, 1e12).max() / gains.max(), rel=1e-4)
    assert examples_needed(batch, SCALE) == pytest.approx(
        batch * steps_needed(batch, SCALE) / (1e-9 * steps_needed(1e-9, SCALE)), rel=1e-6
    )


def test_loss_change_is_that_of_simulated_steps():
    rng = np.random.default_rng(0)
    h, g, sigma = np.array([1.0, 3.0, 0.2]), np.array([0.5, -0.4, 1.0]), np.array([2.0, 1.0, 0.5])
    rate, batch = 0.4, 4
    steps = -rate * (g + rng.normal(size=(200_000, 3)) * np.sqrt(sigma / batch))
    changes = steps @ g + 0.5 * (steps**2) @ h
    predicted = expected_loss_change(rate, batch, g @ g, g @ (h * g), h @ sigma)
    assert changes.mean() == pytest.approx(predicted, abs=4 * changes.std() / math.sqrt(200_000))


def test_break_even():
    batch = break_even_batch(0.2, SQUARE, CURVATURE, NOISE_CURVATURE)
    assert gain(0.2, batch) == pytest.approx(0.0, abs=1e-12)
    assert gain(0.2, 1.1 * batch) > 0 > gain(0.2, 0.9 * batch)
    assert break_even_batch(1.0, SQUARE, CURVATURE, NOISE_CURVATURE) == math.inf
    assert gain(1.0, 1e15) <= 1e-9


def test_trade_of_steps_for_examples():
    assert speedup(10, 40, 100) == pytest.approx(steps_needed(10, 100) / steps_needed(40, 100))
    assert examples_ratio(10, 40, 100) == pytest.approx(examples_needed(40, 100) / examples_needed(10, 100))
    assert speedup(10, 40, math.inf) == 4
    assert speedup(10, 40, 0.0) == 1
    assert steps_needed(10, math.inf) == math.inf
    assert optimal_learning_rate(10, math.inf) == 0
    assert examples_needed(10, 0.0) == math.inf
    batch = batch_for_overhead(300.0, 0.2)
    assert examples_needed(batch, 300.0) == pytest.approx(1.2)
    assert steps_needed(batch_for_overhead(300.0, 1.0), 300.0) == 2


@pytest.mark.parametrize(
    ("momentum", "dampening", "nesterov"),
    [(0.0, 0.0, False), (0.0, 0.5, False), (0.9, 0.0, False), (0.9, 0.3, False), (0.9, 0.0, True)],
)
def test_effective_learning_rate_is_how_far_torch_goes_for_one_gradient(momentum, dampening, nesterov):
    w = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.1, momentum=momentum, dampening=dampening, nesterov=nesterov)
    for step in range(400):  # the first gradient is not dampened: begin with none
        w.grad = torch.ones_like(w) if step == 1 else torch.zeros_like(w)
        optimizer.step()
    assert -w.item() == pytest.approx(effective_learning_rate(0.1, momentum, dampening), rel=1e-9)


def test_temperature_is_that_of_a_stationary_state():
    """SGD on w^2 / 2 with additive noise settles at a variance of T / 2 at small learning rates, momentum or not."""
    rng = np.random.default_rng(1)
    trace, batch = 8.0, 4
    for rate, momentum in ((0.02, 0.0), (0.004, 0.8)):
        w, v = np.zeros(20_000), np.zeros(20_000)
        for _ in range(400):
            v = momentum * v + w + rng.normal(size=20_000) * math.sqrt(trace / batch)
            w = w - rate * v
        expected = temperature(effective_learning_rate(rate, momentum), trace, batch) / 2
        assert w.var() == pytest.approx(expected, rel=0.04)
    assert temperature(0.1, 8.0, 4, population=16) == pytest.approx(0.75 * temperature(0.1, 8.0, 4))
    assert temperature(0.1, 8.0, 4, population=2) == temperature(0.1, 8.0, 4)


def test_intervals_go_through():
    falling = propagated(lambda scale: optimal_learning_rate(10, scale), Interval(30.0, 10.0, math.inf))
    assert (falling.center, falling.lower, falling.upper) == (0.25, 0.0, 0.5)


def test_wrong_input_is_explained():
    for call in (steps_needed, examples_needed):
        with pytest.raises(ValueError, match="the batch size is 0"):
            call(0, 10.0)
        for scale in (-1.0, math.nan):
            with pytest.raises(ValueError, match="the noise scale is"):
                call(8, scale)
    with pytest.raises(ValueError, match="the batch size is inf"):
        speedup(8, math.inf, 10.0)
    with pytest.raises(ValueError, match="expected a positive share"):
        batch_for_overhead(10.0, 0.0)
    with pytest.raises(ValueError, match="from 0 to below 1"):
        effective_learning_rate(0.1, 1.0)
