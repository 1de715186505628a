"""Slope and curvature along a direction are those of the dense Hessian; the rounding of a loss is that against float64.

The oracle of the Hessian differentiates once, on a copy of the model in float64 (`dense_hessian`); that of the rounding
is the same loss computed in float64.
"""

import copy
import math

import pytest
import torch
from torch import nn

from learnmech.probes.curvature import HessianOperator, Objective, objective_of
from learnmech.probes.curvature.operators.finite_differences import DifferenceOperator
from learnmech.probes.curvature.stability import Rounding, quadratic_model, rounding_error, smallest_rounding
from learnmech.probes.isolation import FunctionSource, isolated


def gradient(problem):
    problem.model.zero_grad()
    problem.loss(problem.model, problem.batch).backward()
    return torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in _ps(problem)])


def _ps(problem):
    return list(problem.model.parameters())


def test_the_model_is_that_of_the_dense_hessian(problem, dense_hessian):
    twin = problem.double()
    hessian, g = dense_hessian(problem), gradient(twin)
    for v in (None, torch.randn(len(g), dtype=torch.float64)):

        def work(loss, v=v):
            return quadratic_model(HessianOperator(objective_of(loss, [twin.batch])), v)

        model = isolated(FunctionSource(twin.model, twin.loss), work)
        v = g if v is None else v  # noqa: PLW2901 (the gradient is the direction that is taken without one)
        curvature = float(v @ hessian @ v)
        assert model.slope == pytest.approx(float(g @ v), rel=1e-9)
        assert model.square == pytest.approx(float(v @ v), rel=1e-9)
        assert model.curvature == pytest.approx(curvature, rel=1e-6, abs=1e-9)
        assert model.sharpness == pytest.approx(curvature / float(v @ v), rel=1e-6, abs=1e-9)
        assert model.change == pytest.approx(float(g @ v) + curvature / 2, rel=1e-6, abs=1e-9)
        assert model.share == pytest.approx(curvature / (2 * abs(float(g @ v))), rel=1e-6, abs=1e-9)
        assert 0 < model.curvature_error < 1e-10 * float(v @ v) * float(torch.linalg.matrix_norm(hessian, 2))


def test_by_differences_of_slopes_it_is_within_its_own_error(problem, dense_hessian):
    """In float32: the error it states must hold, and be small on smooth networks."""
    hessian, g = dense_hessian(problem), gradient(problem.double())
    exact = float(g @ hessian @ g)

    def work(loss):
        return quadratic_model(DifferenceOperator(objective_of(loss, [problem.batch])))

    model = isolated(FunctionSource(problem.model, problem.loss), work)
    assert model.curvature == pytest.approx(exact, rel=1e-2)
    assert abs(model.curvature - exact) < 5 * model.curvature_error + 1e-3 * abs(exact)
    assert 1e-9 * abs(exact) < model.curvature_error < 0.02 * abs(exact)


def test_a_zero_direction_and_a_flat_loss_have_no_quotient():
    w = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    operator = HessianOperator(Objective([w], [lambda p: p[0].square().sum()]))
    model = quadratic_model(operator)
    assert (model.slope, model.curvature, model.square) == (0.0, 0.0, 0.0)
    assert math.isnan(model.sharpness)
    assert math.isnan(model.share)


def networks():
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 10))
    cnn = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    yield mlp, (20,)
    yield cnn, (1, 8, 8)


@pytest.mark.parametrize("index", [0, 1], ids=["mlp", "cnn"])
def test_the_rounding_of_a_loss_is_its_distance_from_float64(index):
    """Five points tell a deviation to 40 %: the rms of 30 errors must be within a factor of 2.5 of the estimates'."""
    model, shape = list(networks())[index]
    twin = copy.deepcopy(model).double()
    generator = torch.Generator().manual_seed(1)

    def loss_fn(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    ratios = []
    for seed in range(30):
        x, y = torch.randn(64, *shape, generator=generator), torch.randint(0, 10, (64,), generator=generator)

        def work(loss, batch=(x, y), seed=seed):
            objective = objective_of(loss, [batch])
            return float(objective.loss_along()), rounding_error(objective, seed=seed)

        value, error = isolated(FunctionSource(model, loss_fn), work)
        ratios.append((value - float(loss_fn(twin, (x.double(), y)).detach())) / error)
    rms = math.sqrt(sum(ratio**2 for ratio in ratios) / len(ratios))
    assert 1 / 2.5 < rms < 2.5


def test_rounding_is_looked_at_now_and_then_and_scaled_in_between():
    calls = []

    def loss(parameters):
        calls.append(1)
        return parameters[0].sum()

    objective = Objective([torch.tensor([3.0, 4.0], requires_grad=True)], [loss])
    rounding = Rounding()
    first = rounding.of(objective, 7.0)
    assert len(calls) == 5
    assert first >= smallest_rounding(objective, 7.0) > 0
    assert rounding.of(objective, 28.0) == pytest.approx(4 * first)
    assert rounding.of(objective, 7.0 / 4) == pytest.approx(first / 2), "at most as the root falls"
    assert len(calls) == 5
    for _ in range(8):
        rounding.of(objective, 7.0)
    assert len(calls) == 10


def test_rounding_leaves_random_streams_alone():
    objective = Objective([torch.ones(5, requires_grad=True)], [lambda p: p[0].sum()])
    before = torch.get_rng_state()
    rounding_error(objective)
    assert torch.equal(before, torch.get_rng_state())


def test_a_loss_that_is_not_finite_has_no_rounding():
    objective = Objective([torch.ones(2, requires_grad=True)], [lambda p: p[0].sum() * math.inf])
    assert math.isnan(rounding_error(objective))
