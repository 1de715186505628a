"""The density of eigenvalues: bounds that are theorems hold, quantiles lie in their bands and near the truth.

Oracle: spectra that are known, and weights that are computed from them without any Lanczos.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from learnmech.probes.curvature.statistics import hessian_spectrum_of
from learnmech.probes.curvature.statistics.quadrature import Rule

PROBABILITIES = [0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999]


def stieltjes(nodes, weights, steps):
    """Recurrence coefficients of the polynomials orthogonal under a discrete measure, from its sums alone."""
    alphas, betas = [], []
    before, now = np.zeros_like(nodes), np.ones_like(nodes)
    beta = 0.0
    for _ in range(steps):
        alphas.append(float((weights * nodes * now * now).sum()))
        following = (nodes - alphas[-1]) * now - beta * before
        beta = math.sqrt(float((weights * following * following).sum()))
        betas.append(beta)
        before, now = now, following / beta
    return Rule(np.array(alphas), np.array(betas))


@pytest.fixture
def measure():
    """`measure(seed)`: nodes and weights of a random discrete measure with gaps, clusters and outliers."""

    def make(seed, count=60):
        random = np.random.default_rng(seed)
        nodes = np.sort(np.concatenate([random.normal(0, 0.1, count - 5), random.normal(0, 5, 5)]))
        weights = random.chisquare(1, count)
        return nodes, weights / weights.sum()

    return make


@pytest.mark.parametrize("steps", [2, 5, 9])
def test_no_measure_escapes_the_bounds(steps, measure):
    """2 000 random places in each of 20 measures, some of them exactly on nodes of the rule."""
    for seed in range(20):
        nodes, weights = measure(seed)
        rule = stieltjes(nodes, weights, steps)
        at = np.sort(np.concatenate([np.random.default_rng(seed).uniform(-15, 15, 1000), nodes, rule.gauss()[0]]))
        below = (weights * (nodes < at[:, None])).sum(axis=1)
        through = (weights * (nodes <= at[:, None])).sum(axis=1)
        lower, upper = rule.brackets(at)
        assert np.all(lower <= through + 1e-9)
        assert np.all(upper >= below - 1e-9)
        assert np.all(np.diff(lower) > -1e-9)
        assert np.all(np.diff(upper) > -1e-9)
        assert lower[0] < 1e-6
        assert upper[-1] > 1 - 1e-6


def test_bounds_close_in_with_steps(measure):
    nodes, weights = measure(0)
    at = np.linspace(-0.2, 0.2, 101)
    widths = [np.mean(np.subtract(*stieltjes(nodes, weights, m).brackets(at)[::-1])) for m in (3, 6, 12)]
    assert widths[0] > 1.5 * widths[1] > 2 * widths[2]


def test_moments_are_those_of_the_measure(measure):
    nodes, weights = measure(1)
    rule = stieltjes(nodes, weights, 4)
    assert rule.moments == pytest.approx([float((weights * nodes**k).sum()) for k in (1, 2, 4)], rel=1e-10)
    gauss, mass = rule.gauss()
    for power in range(8):
        assert float((mass * gauss**power).sum()) == pytest.approx(float((weights * nodes**power).sum()), rel=1e-8)


@pytest.mark.parametrize("name", ["bulk", "outliers", "semicircle", "power"])
def test_quantiles_lie_in_their_bands_and_near_the_truth(name, spectrum, matrix):
    values = spectrum(name, 1000)
    truth = np.quantile(values.numpy(), PROBABILITIES, method="inverted_cdf")
    scale = float(values.square().mean().sqrt())
    inside, errors = [], []
    for seed in range(10):
        found = hessian_spectrum_of(matrix(values), seed=seed, check=False).quantiles(PROBABILITIES)
        inside += [q.lower <= t <= q.upper for q, t in zip(found, truth, strict=True)]
        errors.append([(q.value - t) / scale for q, t in zip(found, truth, strict=True)])
        assert all(a.value <= b.value for a, b in pairwise(found))
        assert all(q.stderr == pytest.approx(max(q.upper - q.value, q.value - q.lower) / 1.96, rel=1e-3) for q in found)
    assert sum(inside) >= 0.95 * len(inside)
    spread = np.sqrt(np.square(errors).mean(axis=0))
    assert np.all(spread[2:7] < 0.5)  # 0.05 to 0.95, in units of the root mean square eigenvalue
    assert spread[4] < 0.1 or name == "semicircle"


@pytest.mark.parametrize(("p", "truth"), [(0.48, -1.0), (0.52, 2.0)])
def test_the_band_holds_chance_too(p, truth, matrix):
    """Three eigenvalues, many times each: the quadrature is exact and only the share that a vector sees is random.

    Its standard deviation is sqrt(0.5 / 300 / 3) = 0.024 with three vectors, so that the quantile beside the jump is
    often the wrong one.
    """
    values = torch.tensor([-1.0] * 150 + [2.0] * 140 + [5.0] * 10, dtype=torch.float64)
    found = [
        hessian_spectrum_of(matrix(values), vectors=4, steps=4, seed=seed, check=False).quantile(p)
        for seed in range(60)
    ]
    assert 3 <= sum(abs(q.value - truth) > 1 for q in found) <= 30
    assert sum(q.lower - 1e-9 <= truth <= q.upper + 1e-9 for q in found) >= 55


def test_more_steps_make_narrower_bands(spectrum, matrix):
    values = spectrum("bulk", 2000)
    widths = []
    for steps in (4, 16):
        band = hessian_spectrum_of(matrix(values), vectors=3, steps=steps, check=False).quantile(0.25)
        widths.append(band.upper - band.lower)
    assert widths[0] > 2 * widths[1]


def test_nodes_weights_and_density(spectrum, matrix):
    values = spectrum("outliers", 1000)
    found = hessian_spectrum_of(matrix(values), check=False)
    assert float(found.weights.sum()) == pytest.approx(1.0, abs=1e-12)
    assert bool((found.nodes.diff() >= 0).all())
    assert abs(float(found.weights @ found.nodes) * 1000 - found.trace) < 10 * found.trace_error
    grid = torch.linspace(-10, 30, 4001, dtype=torch.float64)
    density = found.density(grid, 0.5)
    assert float(density.sum()) * 0.01 == pytest.approx(1.0, rel=1e-6)
    # the window smooths the truth as well: of mass one, no more than a few per cent are elsewhere
    exact = torch.exp(-0.5 * ((grid[:, None] - values) / 0.5).square()).sum(dim=1) / (
        1000 * 0.5 * math.sqrt(2 * math.pi)
    )
    assert float((density - exact).abs().sum()) * 0.01 < 0.05


@pytest.mark.parametrize("p", [0.0, 1.0, -1.0, math.nan])
def test_a_probability_lies_between_zero_and_one(p, matrix):
    found = hessian_spectrum_of(matrix(torch.ones(4)), check=False)
    with pytest.raises(ValueError, match=f"probability {p}"):
        found.quantile(p)


def test_a_window_has_a_width(matrix):
    found = hessian_spectrum_of(matrix(torch.ones(4)), check=False)
    with pytest.raises(ValueError, match="width=0"):
        found.density(torch.zeros(3), 0)
