"""Ratios of means: Fieller's set against its definition, its coverage, and what is kept in a window."""

import math

import numpy as np
import pytest
import torch

from learnmech.laws.statistics import student_t
from learnmech.probes.estimators import Moments, RatioWindow, noise_from_squares, ratio_of


def window_of(pairs):
    window = RatioWindow(max(2, len(pairs)))
    for a, b in pairs:
        window.append(a, b)
    return window


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
    ratio = window_of(pairs).ratio()
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
    squares, total = (pieces**2).sum(axis=3), (whole**2).sum(axis=2)
    for repeat in range(repeats):
        kept = RatioWindow(window)
        for k in range(window):
            parts = noise_from_squares(squares[repeat, k].tolist(), total[repeat, k], sizes)
            kept.append(parts.noise_trace, parts.grad_sq_norm)
        yield kept


@pytest.mark.parametrize(("signal", "window"), [(1.0, 20), (0.3, 40), (0.1, 40), (0.05, 100)])
def test_interval_covers_the_truth_in_95_of_100(signal, window):
    """In the last two cases |G|^2 is not told from zero in most windows, and the sets say so by being unbounded."""
    rng = np.random.default_rng(11)
    truth = 8 / (8 * signal**2)
    covered = determined = 0
    repeats = 600
    for kept in simulated(rng, repeats, window, signal):
        ratio = kept.ratio()
        determined += ratio.determined
        if ratio.determined:
            covered += ratio.lower <= truth <= ratio.upper
        else:
            covered += math.isinf(ratio.lower) or truth <= ratio.lower or truth >= ratio.upper
    assert 0.92 <= covered / repeats <= 0.98, covered / repeats
    assert (determined / repeats > 0.99) == (signal >= 0.3)


def test_standard_error_is_calibrated():
    rng = np.random.default_rng(12)
    ratios = [kept.ratio() for kept in simulated(rng, 300, 60, signal=1.0)]
    assert all(ratio.determined for ratio in ratios)
    scatter = np.std([ratio.value for ratio in ratios])
    reported = np.mean([ratio.stderr for ratio in ratios])
    assert reported == pytest.approx(scatter, rel=0.12)


def test_a_clamped_estimator_would_be_wrong_by_orders_of_magnitude():
    """A peer took max(|G|^2, eps): at a truth of 1e6 it reported 1e7. Here the ratio of means with its interval."""
    rng = np.random.default_rng(13)
    truth = 1e4
    (kept,) = simulated(rng, 1, 20_000, signal=math.sqrt(1 / truth))
    ratio = kept.ratio()
    assert ratio.determined or ratio.at_least < truth
    assert abs(ratio.value - truth) < 3 * (ratio.stderr or math.inf)
    small = RatioWindow(50)
    for a, b in list(kept._pairs)[:50]:
        small.append(a, b)
    assert not small.ratio().determined
    assert small.ratio().stderr is None
    clamped = np.mean([a / max(b, 1e-9) for a, b in list(kept._pairs)[:200]])
    assert clamped > 100 * truth


def test_too_little_data_determines_nothing():
    for pairs in ([], [(1.0, 2.0)]):
        ratio = window_of(pairs).ratio()
        assert not ratio.determined
        assert (ratio.lower, ratio.upper, ratio.stderr) == (-math.inf, math.inf, None)
    assert math.isnan(ratio_of(Moments()).value)
    assert window_of([(1.0, 2.0)]).ratio().value == 0.5
    assert Moments(1, 1.0, 2.0).standard_errors() == (math.inf, math.inf)
    exact = window_of([(1.0, 2.0)] * 5).ratio()
    assert exact.determined
    assert (exact.lower, exact.upper, exact.stderr) == (0.5, 0.5, 0.0)
    assert not window_of([(1.0, 0.0)] * 5).ratio().determined


def test_moments_add_up():
    torch.manual_seed(0)
    pairs = (torch.randn(40, 2, dtype=torch.float64) + torch.tensor([1e6, 3.0])).tolist()
    whole = window_of(pairs).moments()
    left, right = window_of(pairs[:13]).moments(), window_of(pairs[13:]).moments()
    one_by_one = Moments()
    for a, b in pairs:
        one_by_one = one_by_one.add(a, b)
    for other in (left + right, right + left, one_by_one, whole + Moments(), Moments() + whole):
        for field in ("count", "mean_a", "mean_b", "sum_aa", "sum_bb", "sum_ab"):
            assert getattr(other, field) == pytest.approx(getattr(whole, field), rel=1e-8)
    array = np.array(pairs)
    assert whole.standard_errors() == pytest.approx(tuple(array.std(axis=0, ddof=1) / math.sqrt(40)))


def test_window_slides_and_leaves_out_what_is_not_finite():
    window = RatioWindow(3)
    for a in range(10):
        window.append(float(a), 1.0)
    assert len(window) == 3
    assert window.moments().mean_a == 8.0
    window.append(math.nan, 1.0)
    window.append(1.0, math.inf)
    assert window.left_out == 2
    assert window.moments().mean_a == 8.0
    window.clear()
    assert len(window) == 0
    with pytest.raises(ValueError, match="expected two or more"):
        RatioWindow(1)
