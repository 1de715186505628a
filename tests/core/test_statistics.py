"""Intervals against simulation: coverage is counted, not derived a second time."""

import math
import random

import pytest

from learnmech.laws.fieller import EVERYTHING, fieller
from learnmech.laws.statistics import blocks, inflation, ratio_of_means, student_t


def ar1(rng, n, rho, sd):
    """A stationary first-order autoregressive series with mean 1."""
    x, out = rng.gauss(0, sd), []
    for _ in range(n):
        x = rho * x + rng.gauss(0, sd * math.sqrt(1 - rho**2))
        out.append(1 + x)
    return out


def test_student_t_against_the_normal_limit_and_a_tabulated_value():
    assert student_t(1) == 12.706
    assert student_t(60) == pytest.approx(2.0003, abs=1e-3)
    assert student_t(10**9) == pytest.approx(1.959964, abs=1e-6)
    with pytest.raises(ValueError, match="at least 1"):
        student_t(0)


def test_blocks_average_everything_once():
    values = [float(i) for i in range(37)]
    assert sum(len_ * mean for len_, mean in zip([4, 3, 4, 4, 3, 4, 4, 4, 3, 4], blocks(values), strict=True)) == sum(
        values
    )


def test_inflation_of_white_noise_is_near_one_and_of_a_trend_is_large():
    rng = random.Random(1)
    assert inflation([rng.gauss(0, 1) for _ in range(4000)]) < 1.15
    assert inflation([float(i) for i in range(20)]) > 4
    assert inflation([1.0, 1.0, 1.0]) == 1.0


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("n", [10, 30, 200])
def test_intervals_cover_the_truth_on_correlated_series(rho, n):
    """Batch means with the lag-one correction against 1500 simulated lawful runs.

    A pooled window shorter than a few correlation times cannot know its own error (independent-sample errors cover
    30 % at
    n = 10, rho = 0.9); there the floor asked for is lower, and band and debounce carry the rest (test_judgement).
    """
    rng = random.Random(7)
    repeats, hits = 1500, 0
    for _ in range(repeats):
        interval = ratio_of_means(ar1(rng, n, rho, 0.05), [1.0] * n)
        hits += interval.lower <= 1.0 <= interval.upper
    floor = {0.0: (0.93, 0.93, 0.93), 0.5: (0.82, 0.90, 0.90), 0.9: (0.55, 0.70, 0.88)}[rho][(10, 30, 200).index(n)]
    assert floor <= hits / repeats <= 1.0, hits / repeats


def test_fieller_covers_a_ratio_of_two_noisy_means():
    """Against a known truth, with the denominator resolved to only 3 standard errors, where the delta method fails."""
    rng = random.Random(3)
    repeats, hits, unbounded = 2000, 0, 0
    for _ in range(repeats):
        a = [2.0 + rng.gauss(0, 1) for _ in range(10)]
        b = [1.0 + rng.gauss(0, 1.05) for _ in range(10)]
        interval = ratio_of_means(a, b)
        unbounded += not interval.bounded
        hits += interval.lower <= 2.0 <= interval.upper
    assert hits / repeats >= 0.93
    assert unbounded > 0, "a denominator of 3 standard errors is sometimes unresolved and must say so"


def test_an_unresolved_denominator_gives_an_unbounded_interval():
    interval = ratio_of_means([1.0, 1.1, 0.9, 1.0], [0.1, -0.1, 0.2, -0.2])
    assert not interval.bounded


def test_a_residual_bound_widens_the_interval():
    tight = ratio_of_means([1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    wide = ratio_of_means([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], floor=0.1)
    assert tight.upper == pytest.approx(1.0)
    assert wide.upper == pytest.approx(1.196, abs=1e-3)


def test_mismatched_lengths_are_refused():
    with pytest.raises(ValueError, match="two or more pairs"):
        ratio_of_means([1.0], [1.0])


def test_a_ratio_of_numbers_beyond_squaring_is_not_determined():
    assert fieller(1e200, 1e-200, 1.0, 1e300, 1e300) == EVERYTHING
