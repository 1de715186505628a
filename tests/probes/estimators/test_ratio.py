"""Ratios of means: Fieller's set against its definition, and its standard error. Coverage: `noise/test_window.py`."""

import math

import numpy as np
import pytest
from scipy.stats import t as student

from learnmech.laws.statistics import student_t
from learnmech.probes.estimators import Design, Moments, noise_parts, quantile, ratio_of


def moments_of(pairs):
    """Moments of pairs of equal weights, by numpy."""
    pairs = np.array(pairs)
    covariance = np.cov(pairs.T)
    means = pairs.mean(axis=0)
    return Moments(len(pairs), len(pairs) - 1, *means, covariance[0, 0], covariance[1, 1], covariance[0, 1])


def of(pairs, factor=math.inf):
    return ratio_of(moments_of(pairs), factor)


def not_excluded(pairs, r):
    """The definition: is mean(a - r b) within t standard errors of zero?"""
    values = np.array([a - r * b for a, b in pairs])
    error = values.std(ddof=1) / math.sqrt(len(values))
    return abs(values.mean()) <= student_t(len(values) - 1) * error


@pytest.mark.parametrize("mean_b", [5.0, 1.0, 0.3, 0.05, 0.0, -0.3, -5.0])
@pytest.mark.parametrize("mean_a", [4.0, 0.0, 0.6])
def test_set_is_its_definition(mean_a, mean_b):
    rng = np.random.default_rng(int(10 * mean_a + 100 * mean_b) % 1000)
    pairs = [(mean_a + x + 0.5 * y, mean_b + y) for x, y in rng.normal(size=(12, 2))]
    ratio = of(pairs)
    candidates = [0.0, *(s * m for s in (1, -1) for m in np.geomspace(1e-3, 1e4, 300))]
    for r in candidates:
        if min(abs(r - ratio.lower), abs(r - ratio.upper)) < 1e-9 * abs(r):
            continue
        if ratio.determined:
            inside = ratio.lower <= r <= ratio.upper
        elif math.isinf(ratio.lower):
            inside = True
        else:
            inside = r <= ratio.lower or r >= ratio.upper
        assert inside == not_excluded(pairs, r), (r, ratio)
    assert ratio.determined == (not not_excluded([(b, 1.0) for _, b in pairs], 0.0))  # iff b is told from zero
    assert (ratio.stderr is not None) == ratio.determined
    smallest = [r for r in sorted(candidates) if r >= 0 and not_excluded(pairs, r)]
    if smallest:
        assert ratio.at_least <= smallest[0] * (1 + 1e-9)


def simulated(rng, repeats, window, signal, dimension=8, sizes=(8, 8)):
    """Windows of pairs (tr Sigma, |G|^2) from Gaussian gradients of dimension 8, and the true ratio."""
    g = signal * np.ones(dimension)
    noise = rng.normal(size=(repeats, window, len(sizes), dimension)) / np.sqrt(np.array(sizes))[:, None]
    pieces = g + noise
    whole = (pieces * np.array(sizes)[:, None]).sum(axis=2) / sum(sizes)
    share = np.array(sizes) / sum(sizes)
    squares, total = (pieces**2).sum(axis=3), (whole**2).sum(axis=2)
    own, spread = squares @ share**2, squares @ share - total
    for repeat in range(repeats):
        rows = zip(total[repeat], own[repeat], spread[repeat], strict=True)
        parts = [noise_parts(*row, Design.of(sizes)) for row in rows]
        yield [(part.noise_trace, part.grad_sq_norm) for part in parts]


def test_standard_error_is_calibrated():
    rng = np.random.default_rng(12)
    ratios = [of(pairs) for pairs in simulated(rng, 300, 60, signal=1.0)]
    assert all(ratio.determined for ratio in ratios)
    scatter = np.std([ratio.value for ratio in ratios])
    reported = np.mean([ratio.stderr for ratio in ratios])
    assert reported == pytest.approx(scatter, rel=0.12)


def test_a_clamped_estimator_would_be_wrong_by_orders_of_magnitude():
    """A peer took max(|G|^2, eps): at a truth of 1e6 it reported 1e7. Here the ratio of means with its interval."""
    rng = np.random.default_rng(13)
    truth = 1e4
    (pairs,) = simulated(rng, 1, 20_000, signal=math.sqrt(1 / truth))
    ratio = of(pairs)
    assert ratio.bounded or ratio.at_least < truth
    assert abs(ratio.value - truth) < 3 * (ratio.stderr or math.inf)
    small = of(pairs[:50])
    assert not small.bounded
    assert small.stderr is None
    clamped = np.mean([a / max(b, 1e-9) for a, b in pairs[:200]])
    assert clamped > 100 * truth


def test_too_little_data_determines_nothing():
    for moments in (Moments(), Moments(1, 0, 1.0, 2.0)):
        ratio = ratio_of(moments)
        assert not ratio.bounded
        assert not ratio.determined
        assert (ratio.lower, ratio.upper, ratio.stderr) == (-math.inf, math.inf, None)
        assert moments.standard_errors() == (math.inf, math.inf)
    assert math.isnan(ratio_of(Moments()).value)
    assert ratio_of(Moments(1, 0, 1.0, 2.0)).value == 0.5
    exact = of([(1.0, 2.0)] * 5, factor=4.0)
    assert exact.determined
    assert (exact.lower, exact.upper, exact.stderr) == (0.5, 0.5, 0.0)
    assert not of([(1.0, 0.0)] * 5).bounded


def test_determined_within_a_factor():
    rng = np.random.default_rng(14)
    pairs = rng.normal(size=(30, 2)) + np.array([9.0, 1.2])
    ratio = of(pairs)
    span = ratio.upper / ratio.lower
    assert span > 1.5
    assert of(pairs, 1.01 * span).determined
    assert not of(pairs, 0.99 * span).determined
    touching = of(pairs - np.array([9.0, 0.0]))
    assert touching.bounded
    assert touching.determined  # without a factor any interval will do
    assert not of(pairs - np.array([9.0, 0.0]), 1e9).determined


def test_swapped_moments_give_the_inverse():
    rng = np.random.default_rng(15)
    moments = moments_of(rng.normal(size=(30, 2)) + np.array([9.0, 5.0]))
    there, back = ratio_of(moments), ratio_of(moments.swapped)
    assert back.value == pytest.approx(1 / there.value)
    assert (back.lower, back.upper) == pytest.approx((1 / there.upper, 1 / there.lower))
    assert moments.standard_errors() == moments.swapped.standard_errors()[::-1]


def test_quantile_between_whole_numbers():
    """Against scipy."""
    for degrees in (1.0, 2.0, 2.5, 7.3, 29.9, 30.0, 55.5):
        assert quantile(degrees) == pytest.approx(student.ppf(0.975, degrees), rel=0.02)
    assert quantile(0.3) == quantile(1.0)
    assert 1.0 < quantile(1.5) / student.ppf(0.975, 1.5) < 1.2
