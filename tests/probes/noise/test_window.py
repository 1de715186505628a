"""The exponentially weighted window: its weights against explicit ones, and the coverage of its interval.

The oracle of coverage is the truth that Gaussian contributions are drawn with; 500 repeats each.
"""

import math

import numpy as np
import pytest

from learnmech.probes.estimators.noise import Design, noise_parts
from learnmech.probes.estimators.ratio import quantile, ratio_of
from learnmech.probes.noise.window import ExponentialWindow

REPEATS = 500


def filled(pairs, half_life=25.0):
    window = ExponentialWindow(half_life)
    for a, b in pairs:
        window.append(float(a), float(b))
    return window


@pytest.mark.parametrize(("half_life", "count"), [(1.0, 2), (3.0, 7), (25.0, 2), (25.0, 40), (25.0, 400)])
def test_moments_are_those_of_explicit_weights(half_life, count):
    rng = np.random.default_rng(1)
    pairs = rng.normal(size=(count, 2)) + np.array([1e6, 3.0])
    weights = 0.5 ** (np.arange(count)[::-1] / half_life)
    window = filled(pairs, half_life)
    found, effective = window.moments(), weights.sum() ** 2 / (weights**2).sum()
    assert (window.count, window.left_out) == (count, 0)
    assert found.count == pytest.approx(effective, rel=1e-12)
    assert [found.mean_a, found.mean_b] == pytest.approx(np.average(pairs, axis=0, weights=weights).tolist(), rel=1e-12)
    # numpy's "reliability weights": sum w (x - mean)^2 / (sum w - sum w^2 / sum w)
    covariance = np.cov(pairs.T, aweights=weights)
    assert found.var_a == pytest.approx(covariance[0, 0], rel=1e-8)
    assert found.var_b == pytest.approx(covariance[1, 1], rel=1e-8)
    assert found.cov == pytest.approx(covariance[0, 1], rel=1e-7)


@pytest.mark.parametrize("half_life", [1.0, 5.0, 25.0, 300.0])
def test_effective_number_of_a_long_window(half_life):
    window = filled([(1.0, 1.0)] * int(30 * half_life), half_life)
    d = 0.5 ** (1 / half_life)
    moments = window.moments()
    assert moments.count == pytest.approx((1 + d) / (1 - d), rel=1e-8)
    assert moments.count == pytest.approx(2 * half_life / math.log(2), rel=0.05 if half_life > 1 else 0.1)
    assert moments.degrees == pytest.approx(moments.count - 1 / 3, abs=0.15)


def test_degrees_of_freedom_are_those_of_the_variance():
    """For normal pairs the variance of a variance estimate is 2 sigma^4 / degrees: measured over 4000 windows."""
    rng = np.random.default_rng(2)
    for half_life, count in ((3.0, 5), (3.0, 30), (25.0, 12)):
        windows = [filled(pairs, half_life) for pairs in rng.normal(size=(4000, count, 2))]
        variances = np.array([window.moments().var_a for window in windows])
        assert variances.mean() == pytest.approx(1.0, abs=4 * variances.std() / math.sqrt(4000))
        assert windows[0].moments().degrees == pytest.approx(2 / variances.var(), rel=0.12)
    assert filled(np.ones((9, 2)), half_life=1e6).moments().degrees == pytest.approx(8, rel=1e-4)


def simulated(rng, measurements, signal, pieces=4, size=8, dimension=50, repeats=REPEATS):
    """Estimates (tr Sigma, |G|^2) from Gaussian pieces with Sigma = 1; `signal` may differ between measurements."""
    strength = np.broadcast_to(np.asarray(signal, dtype=float), measurements)
    g = strength[:, None, None] + rng.normal(size=(repeats, measurements, pieces, dimension)) / math.sqrt(size)
    squares, whole = (g**2).sum(axis=3), (g.mean(axis=2) ** 2).sum(axis=2)
    own, spread = squares.sum(axis=2) / pieces**2, squares.mean(axis=2) - whole
    design = Design.of([size] * pieces)
    for repeat in range(repeats):
        rows = zip(whole[repeat], own[repeat], spread[repeat], strict=True)
        parts = [noise_parts(*(float(value) for value in row), design) for row in rows]
        yield [(part.noise_trace, part.grad_sq_norm) for part in parts]


def covers(ratio, truth):
    """Whether the set holds the truth, of whichever kind it is."""
    if ratio.bounded:
        return ratio.lower <= truth <= ratio.upper
    return math.isinf(ratio.lower) or truth <= ratio.lower or truth >= ratio.upper


CASES = [
    # half-life, measurements, signal (|G|^2 B / tr Sigma = 32 signal^2), dimension
    (25.0, 80, 1.0, 50),
    (25.0, 80, 0.3, 50),
    (25.0, 80, 0.1, 50),
    (25.0, 80, 0.03, 50),
    (25.0, 80, 0.3, 4),
    (25.0, 3, 1.0, 50),
    (25.0, 5, 0.3, 50),
    (25.0, 5, 0.1, 50),
    (3.0, 40, 0.3, 50),
    (3.0, 40, 0.1, 4),
]


@pytest.mark.parametrize(("half_life", "measurements", "signal", "dimension"), CASES)
def test_interval_covers_the_truth(half_life, measurements, signal, dimension):
    rng = np.random.default_rng(3)
    truth = 1 / signal**2
    covered = determined = right = 0
    for pairs in simulated(rng, measurements, signal, dimension=dimension):
        ratio = filled(pairs, half_life).ratio()
        covered += covers(ratio, truth)
        determined += ratio.determined
        right += ratio.determined and covers(ratio, truth)
    print(
        f"half-life {half_life:g}, {measurements} measurements, signal to noise {32 * signal**2:.2g}, dimension "
        f"{dimension}: covers {covered / REPEATS:.1%}; a number in {determined / REPEATS:.1%}, wrong in "
        f"{(determined - right) / REPEATS:.1%} of all"
    )
    assert 0.92 <= covered / REPEATS <= 0.98
    # a number is given and wrong no more often than an interval is; few are given where the signal is buried
    assert (determined - right) / REPEATS <= 0.08


def test_buried_signal_is_undetermined():
    """|G|^2 is a thousandth of the noise of a batch: no number, but what the noise scale is at least."""
    rng = np.random.default_rng(4)
    signal = math.sqrt(1e-3 / 32)
    ratios = [filled(pairs).ratio() for pairs in simulated(rng, 100, signal)]
    numbers = sum(ratio.determined for ratio in ratios)
    right = sum(ratio.at_least <= 1 / signal**2 for ratio in ratios)
    print(f"a number in {numbers} of {REPEATS}, the bound holds in {right / REPEATS:.1%}")
    assert numbers <= 0.005 * REPEATS
    assert right >= 0.95 * REPEATS
    assert np.median([ratio.at_least for ratio in ratios]) > 100


def test_delta_method_would_not_cover():
    """What is usual, value +- 1.96 standard errors by linearization, beside Fieller's set on the same windows."""
    rng = np.random.default_rng(5)
    shares = {}
    for measurements, signal in ((20, 0.06), (50, 0.03), (50, 0.02)):
        truth, delta, fieller = 1 / signal**2, 0, 0
        for pairs in simulated(rng, measurements, signal):
            window = filled(pairs, 1e6)
            m, ratio = window.moments(), window.ratio()
            r = ratio.value
            error = math.sqrt((m.var_a - 2 * r * m.cov + r**2 * m.var_b) / m.count) / abs(m.mean_b)
            delta += abs(r - truth) <= 1.96 * error
            fieller += covers(ratio, truth)
        shares[signal] = (delta / REPEATS, fieller / REPEATS)
        print(f"{measurements} at {signal}: delta method, Fieller {delta / REPEATS:.1%}, {fieller / REPEATS:.1%}")
    assert min(share for share, _ in shares.values()) < 0.85
    assert all(0.92 <= share <= 0.98 for _, share in shares.values())


@pytest.mark.parametrize("rate", [0.0, 0.002, 0.02])
def test_a_drifting_truth(rate):
    """|G|^2 falls by `rate` with each measurement. Covered is the ratio of the window's true means; the value lags.

    The lag is the mean age, half_life / ln 2 = 36 measurements, so that the value is too small by 36 times the rate.
    The interval knows nothing of that: the truth of this moment is covered less and less.
    """
    rng = np.random.default_rng(6)
    half_life, measurements = 25.0, 120
    squares = 0.3**2 * np.exp(-rate * (np.arange(measurements) - measurements + 1))
    weights = 0.5 ** (np.arange(measurements)[::-1] / half_life)
    mean = 1 / np.average(squares, weights=weights)
    ratios = [filled(pairs, half_life).ratio() for pairs in simulated(rng, measurements, np.sqrt(squares))]
    window = sum(covers(ratio, mean) for ratio in ratios) / REPEATS
    now = sum(covers(ratio, 1 / squares[-1]) for ratio in ratios) / REPEATS
    value = np.median([ratio.value for ratio in ratios])
    print(
        f"rate {rate:g}: covers the window's mean in {window:.1%}, the truth of now in {now:.1%}; value {value:.4g}, "
        f"mean {mean:.4g}, now {1 / squares[-1]:.4g}"
    )
    assert window >= 0.92  # above 98 % where the drift counts as scatter: wider than it need be, never narrower
    assert value == pytest.approx(mean, rel=0.02)
    if rate == 0.002:
        assert value * squares[-1] == pytest.approx(1 - rate * half_life / math.log(2), abs=0.02)


def test_what_determined_means():
    rng = np.random.default_rng(7)
    noise = rng.normal(size=(50, 2))
    clear = filled(np.array([10.0, 5.0]) + noise).ratio()
    assert clear.determined
    assert clear.upper / clear.lower < 4
    assert clear.stderr == pytest.approx((clear.upper - clear.lower) / (2 * quantile(48.9)), rel=0.02)
    wide = filled(np.array([10.0, 1.0]) + 2 * noise).ratio()
    assert wide.bounded
    assert wide.upper / wide.lower > 4
    assert not wide.determined
    assert filled(np.array([10.0, 1.0]) + 2 * noise).ratio(factor=1e9).determined
    touching = filled(np.array([0.0, 5.0]) + noise)
    assert touching.ratio().bounded
    assert not touching.ratio().determined
    assert not filled(np.array([10.0, 0.0]) + noise).ratio().bounded
    inverse = ratio_of(filled(np.array([10.0, 0.0]) + noise).moments().swapped)  # |G|^2 / tr Sigma is known to be small
    assert inverse.bounded
    assert inverse.lower < 0 < inverse.upper < 0.1


def test_too_little_and_not_finite():
    window = ExponentialWindow(5.0)
    assert (window.moments().count, window.ratio().bounded) == (0.0, False)
    assert math.isnan(window.ratio().value)
    assert window.append(2.0, 1.0)
    assert window.ratio().value == 2.0
    assert not window.ratio().bounded
    assert window.moments().standard_errors() == (math.inf, math.inf)
    for bad in ((math.nan, 1.0), (1.0, math.inf), (1e200, 1.0), (0.0, -math.inf)):
        assert not window.append(*bad)
    assert (window.count, window.left_out) == (1, 4)
    assert window.append(2.0, 1.0)
    exact = window.ratio()
    assert (exact.determined, exact.lower, exact.upper, exact.stderr) == (True, 2.0, 2.0, 0.0)
    window.clear()
    assert (window.count, window.left_out, window.moments().count) == (0, 0, 0.0)
    for half_life in (0.5, 0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="expected 1 or more"):
            ExponentialWindow(half_life)
