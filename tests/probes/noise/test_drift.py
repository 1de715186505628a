"""The ratio of the moment while the truth drifts: the truth that estimates are drawn with is the oracle.

|G|^2 changes by `rate` with each measurement, up or down; covered is what it is at the last one. 500 repeats each.
"""

import math

import numpy as np
import pytest

from learnmech.probes.estimators.ratio import MOVE, STRETCH, ratio_now, ratio_of
from learnmech.probes.noise.window import RESOLVED, ExponentialWindow

REPEATS = 500
DIMENSION, PIECES, SIZE = 50, 4, 8
BATCH = PIECES * SIZE


def estimates(rng, squares, repeats=REPEATS):
    """Pairs (tr Sigma, |G|^2), per dimension: Gaussian pieces with Sigma = 1; their scatter is a chi-square."""
    shape = (repeats, len(squares))
    mean = np.sqrt(squares)[:, None] + rng.normal(size=(*shape, DIMENSION)) / math.sqrt(BATCH)
    free = DIMENSION * (PIECES - 1)
    trace = rng.chisquare(free, size=shape) / free
    return np.stack([trace, (mean**2).mean(axis=2) - trace / BATCH], axis=2)


def filled(pairs, half_life=25.0):
    window = ExponentialWindow(half_life)
    for a, b in pairs.tolist():
        window.append(a, b)
    return window


def covers(ratio, truth):
    if ratio.bounded:
        return ratio.lower <= truth <= ratio.upper
    return (math.isinf(ratio.lower) and math.isinf(ratio.upper)) or truth <= ratio.lower or truth >= ratio.upper


@pytest.mark.parametrize(("half_life", "count"), [(2.0, 2), (3.0, 7), (25.0, 40), (25.0, 400)])
def test_levels_are_where_weighted_lines_end(half_life, count):
    pairs = np.random.default_rng(1).normal(size=(count, 2)) + np.array([1e3, 3.0])
    ages = np.arange(count)[::-1]
    weights = 0.5 ** (ages / half_life)
    moments = filled(pairs, half_life).moments()
    # numpy takes the square roots of the weights of squares
    expected = np.polyfit(ages, pairs, 1, w=np.sqrt(weights))[1]
    assert [moments.level_a, moments.level_b] == pytest.approx(expected.tolist(), rel=1e-9)
    swapped = moments.swapped
    assert (swapped.level_a, swapped.level_b) == (moments.level_b, moments.level_a)


CASES = [  # signal: |G|^2 B / tr Sigma = 32 signal^2
    (measurements, signal, rate)
    for measurements, signal in ((6, 1.0), (20, 0.3), (80, 1.0), (80, 0.3), (80, 0.1), (200, 0.3))
    for rate in (0.0, 0.002, -0.002, 0.01, -0.01)
]


@pytest.mark.parametrize(("measurements", "signal", "rate"), CASES)
def test_the_truth_of_the_moment_is_covered(measurements, signal, rate):
    rng = np.random.default_rng(2)
    squares = signal**2 * np.exp(rate * (np.arange(measurements) - measurements + 1))
    truth = 1 / squares[-1]
    windows = [filled(pairs) for pairs in estimates(rng, squares)]
    ratios = [ratio_now(window.moments(), RESOLVED) for window in windows]
    numbers = [r for r in ratios if r.determined]
    covered = sum(covers(r, truth) for r in ratios) / REPEATS
    recorded = sum(abs(r.value - truth) <= (r.upper - r.lower) / 2 for r in numbers) / len(numbers)
    mean = sum(covers(window.ratio(), truth) for window in windows) / REPEATS
    width = np.median([math.log(r.upper / r.lower) for r in numbers])
    before = np.median([math.log(r.upper / r.lower) for r in (w.ratio() for w in windows) if r.determined])
    print(
        f"{measurements} measurements, signal to noise {32 * signal**2:.2g}, drift {rate:+.1%}: covers {covered:.1%} "
        f"(the window's mean {mean:.1%}); a number in {len(numbers) / REPEATS:.1%}, value +- t errors {recorded:.1%}; "
        f"{width / before:.2f} times wider"
    )
    if rate == 0.0:
        assert 0.92 <= covered <= 0.98
        assert 0.92 <= recorded <= 0.98
        assert width < 1.6 * before
    else:
        assert covered >= 0.86
        assert recorded >= 0.84
        assert covered >= mean - 0.01


def test_noise_alone_hardly_moves_the_value():
    """Without drift: variance of its logarithm against that of the ratio of means; 2.5 times in the middle."""
    rng = np.random.default_rng(4)
    windows = [filled(pairs) for pairs in estimates(rng, np.full(80, 0.09))]
    now = np.var([math.log(ratio_now(window.moments(), RESOLVED).value) for window in windows])
    before = np.var([math.log(window.ratio().value) for window in windows])
    print(f"{now / before:.2f} times")
    assert 1.0 < now / before < 2.4


@pytest.mark.parametrize("rate", [0.98, 0.95, 0.92, 0.9, 0.8])
@pytest.mark.parametrize("measurements", [20, 60, 150])
def test_a_trace_that_falls_fast_gives_no_stale_number(rate, measurements):
    rng = np.random.default_rng(5)
    traces = rate ** np.arange(measurements)
    found = []
    for _ in range(100):
        a = traces * (1 + 0.1 * rng.normal(size=measurements))
        window = filled(np.stack([a, 1 + 0.3 * rng.normal(size=measurements)], axis=1))
        found.append(ratio_now(window.moments(), RESOLVED))
    numbers = [r for r in found if r.determined]
    covered = sum(covers(r, traces[-1]) for r in found) / 100
    print(f"{rate} a measurement, {measurements}: a number in {len(numbers)}, covers {covered:.0%}")
    assert covered >= 0.84
    assert sum(covers(r, traces[-1]) for r in numbers) >= 0.8 * len(numbers)


def test_a_trace_that_comes_down_to_nothing_has_no_lower_end():
    vanishing = [(a, 1.0) for a in np.linspace(1.0, -0.05, 40)]
    past, now = ratio_of(moments(vanishing), 4.0), ratio_now(moments(vanishing), 4.0)
    assert past.determined
    assert (now.bounded, now.determined, now.lower, now.at_least) == (True, False, 0.0, 0.0)
    assert (now.value, now.upper) == (past.value, past.upper)
    signal = ratio_now(moments(vanishing).swapped)  # its inverse may be anything
    assert (signal.bounded, signal.determined, signal.stderr) == (False, False, None)
    assert (signal.lower, signal.upper) == (-math.inf, math.inf)
    # a bound does not outlast the numerators either
    buried = [(a, b) for a, b in zip(np.linspace(1.0, -0.05, 40), [0.1, -0.09] * 20, strict=True)]
    assert ratio_of(moments(buried), 4.0).at_least > 1.0
    assert ratio_now(moments(buried), 4.0).at_least == 0.0
    negative = [(-1.0 - a, 1.0) for a in np.linspace(0.0, 1.0, 40)]
    now = ratio_now(moments(negative), 4.0)
    assert now.lower <= now.upper < 0.0
    assert not now.determined


def test_where_noise_buries_the_signal_the_bound_holds_and_there_is_no_number():
    rng = np.random.default_rng(3)
    square = 1e-3 / BATCH
    for measurements in (20, 100):
        found = [
            ratio_now(filled(pairs).moments(), RESOLVED) for pairs in estimates(rng, np.full(measurements, square))
        ]
        assert sum(r.determined for r in found) <= 0.005 * REPEATS
        assert sum(r.at_least <= 1 / square for r in found) >= 0.95 * REPEATS
        assert np.median([r.at_least for r in found]) > 100


def moments(pairs):
    return filled(np.asarray(pairs, dtype=float), 1e6).moments()


def test_an_even_drift_is_followed_exactly():
    """No scatter: the line ends at the truth. The window's mean is 3 / 2; its interval is stretched to beyond 4."""
    falling = [(1.0, b) for b in np.linspace(1.0, 0.25, 40)]
    past, now = ratio_of(moments(falling), 4.0), ratio_now(moments(falling), 4.0)
    lag = 4.0 / past.value
    assert past.value == pytest.approx(1.6, rel=1e-4)
    assert now.value == pytest.approx(past.value * lag**MOVE, rel=1e-4)
    assert now.lower == past.lower
    assert now.upper == pytest.approx(past.upper * lag**STRETCH, rel=1e-4)
    assert past.upper < 4.0 < now.upper
    signal, before = ratio_now(moments(falling).swapped), ratio_of(moments(falling).swapped)
    assert signal.upper == before.upper
    assert signal.lower == pytest.approx(before.lower + STRETCH * (0.25 - 0.625), abs=1e-4)
    assert signal.stderr > 2 * before.stderr


def test_a_signal_that_comes_down_to_nothing_has_no_upper_end():
    vanishing = [(1.0, b) for b in np.linspace(1.0, -0.05, 40)]
    past, now = ratio_of(moments(vanishing), 4.0), ratio_now(moments(vanishing), 4.0)
    assert past.determined
    assert (now.bounded, now.determined, now.stderr) == (False, False, None)
    assert (now.lower, now.upper, now.at_least) == (-math.inf, past.lower, past.lower)


@pytest.mark.parametrize(
    "pairs", [[], [(1.0, 1.0)], [(0.0, 0.0)] * 5, [(0.0, 1.0)] * 5, [(1.0, -1.0), (2.0, -2.5)] * 9]
)
def test_where_there_is_no_lag_to_speak_of_nothing_changes(pairs):
    window = filled(np.asarray(pairs, dtype=float).reshape(-1, 2))
    for factor in (4.0, math.inf):
        past, now = window.ratio(factor), ratio_now(window.moments(), factor)
        assert (past.bounded, past.determined) == (now.bounded, now.determined)
    assert str(ratio_now(window.moments(), RESOLVED)) == str(window.ratio())
