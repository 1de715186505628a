"""The spectrum of a model's Hessian, against the dense matrix from differences of gradients in float64."""

import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from learnmech.observables import Status
from learnmech.probes.curvature import HessianOperator, Objective
from learnmech.probes.curvature.operators.finite_differences import DifferenceOperator
from learnmech.probes.curvature.statistics import hessian_spectrum, hessian_spectrum_of


def test_trace_norm_and_quantiles_are_those_of_the_dense_hessian(problem, dense_hessian):
    values = torch.linalg.eigvalsh(dense_hessian(problem))
    found = hessian_spectrum(problem.loss, problem.model, [problem.batch], seed=1)
    assert found.status is Status.OK, found.reason
    assert found.products in {32, 33}  # one may have gone into choosing the method
    assert found.size == len(values)
    assert abs(found.trace - float(values.sum())) < 3 * found.trace_error
    assert abs(found.frobenius - float(values.norm())) < 3 * found.frobenius_error
    assert found.frobenius_error < 0.1 * found.frobenius
    for p in (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99):
        quantile = found.quantile(p)
        assert quantile.lower <= np.quantile(values.numpy(), p, method="inverted_cdf") <= quantile.upper
    rms = float(values.square().mean().sqrt())
    assert found.quantile(0.5).value == pytest.approx(float(values.median()), abs=0.1 * rms)


def test_unequal_batches_are_weighted_by_their_examples(architecture):
    problem = architecture("mlp")
    x, y = problem.batch
    parts = [(x[a:b], y[a:b]) for a, b in ((0, 7), (7, 14), (14, 16))]
    whole = hessian_spectrum(problem.loss, problem.model, [problem.batch])
    for retain in (True, False):
        found = hessian_spectrum(problem.loss, problem.model, parts, retain=retain)
        assert found.trace == pytest.approx(whole.trace, rel=1e-4)
        assert found.frobenius == pytest.approx(whole.frobenius, rel=1e-4)


def test_the_seed_decides_and_no_global_generator_is_touched(architecture):
    problem = architecture("mlp")
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    first, again, other = (
        hessian_spectrum(problem.loss, problem.model, [problem.batch], seed=seed) for seed in (3, 3, 4)
    )
    assert first.trace == again.trace != other.trace
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert random.getstate() == before[2]


def test_a_loss_that_is_nan(architecture):
    problem = architecture("mlp")
    found = hessian_spectrum(lambda m, b: problem.loss(m, b) * math.nan, problem.model, [problem.batch])
    assert found.status is Status.NON_FINITE
    assert "nan" in found.reason


def test_a_loss_without_graph(architecture):
    problem = architecture("mlp")
    found = hessian_spectrum(lambda m, b: problem.loss(m, b).detach(), problem.model, [problem.batch])
    assert found.status is Status.UNSUPPORTED
    assert found.reason
    assert not found.readings


def test_a_linear_loss_has_no_curvature():
    model = nn.Linear(3, 1)
    found = hessian_spectrum(lambda m, x: m(x).mean(), model, [torch.ones(2, 3)])
    assert found.status is Status.OK
    assert (found.trace, found.frobenius, found.trace_error) == (0.0, 0.0, 0.0)
    assert found.quantile(0.9).value == 0.0


def _digits(activation):
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(10, 24), activation(), nn.Linear(24, 24), activation(), nn.Linear(24, 4))
    x, y = torch.randn(64, 10), torch.randint(0, 4, (64,))
    names = [name for name, _ in model.named_parameters()]

    def loss(parameters):
        return cross_entropy(torch.func.functional_call(model, dict(zip(names, parameters, strict=True)), (x,)), y)

    return Objective([p.detach().requires_grad_() for p in model.parameters()], [loss], names=names)


def test_differences_serve_smooth_networks_and_are_marked_on_kinked_ones():
    """Independent of differences: double backward on the same network (the vectors are the same)."""
    exact = hessian_spectrum_of(HessianOperator(_digits(nn.Tanh)))
    found = hessian_spectrum_of(DifferenceOperator(_digits(nn.Tanh)))
    assert found.status is Status.OK
    assert abs(found.trace - exact.trace) < found.trace_error
    assert found.frobenius == pytest.approx(exact.frobenius, rel=1e-2)
    kinked = hessian_spectrum_of(DifferenceOperator(_digits(nn.ReLU)))
    assert kinked.status is Status.UNDETERMINED
    assert "finite_differences" in kinked.reason


class Cube(torch.autograd.Function):
    """x^3 whose gradient 3 x^2 keeps x without its graph: differentiated once more, it is short of a term."""

    @staticmethod
    def forward(ctx, x):
        ctx.kept = x.detach().clone()
        return x**3

    @staticmethod
    def backward(ctx, grad):
        return 3 * ctx.kept**2 * grad


def test_a_wrong_second_derivative_is_refused():
    """L = sum w^6: H = 30 w^4, double backward gives 18 w^4, the missing term being that of the inner function."""
    weights = torch.linspace(0.5, 2, 6, dtype=torch.float64).requires_grad_()
    operator = HessianOperator(Objective([weights], [lambda p: Cube.apply(p[0]).square().sum()]))
    found = hessian_spectrum_of(operator)
    assert found.status is Status.UNSUPPORTED
    assert "wrong second derivative" in found.reason
    assert hessian_spectrum_of(operator, check=False).trace == pytest.approx(float(18 * weights.detach().pow(4).sum()))
