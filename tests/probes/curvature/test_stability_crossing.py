"""The first rise along a line is where a closed form says, within the bracket, and within its evaluations."""

import math
import random

import pytest

from learnmech.probes.curvature.stability import first_rise


@pytest.mark.parametrize("crossing", [0.01, 0.03, 0.5, 0.9, 1.0, 1.1, 2.0, 7.0, 30.0, 300.0])
def test_a_quadratic_is_found_exactly_with_few_evaluations(crossing):
    found = first_rise(lambda c: -c + c * c / crossing, tol=0.02)
    assert found.evaluations <= 5
    assert found.lower <= crossing <= found.upper
    assert found.half_width <= 0.021 * crossing


@pytest.mark.parametrize("crossing", [0.3, 0.8, 1.3, 3.0])
@pytest.mark.parametrize(
    "make",
    [
        lambda t: lambda c: -c + c**4 / t**3,
        lambda t: lambda c: -c if c < t else math.nan,
        lambda t: lambda c: -c if c < t else math.inf,
        lambda t: lambda c: -c + math.expm1(c) * t / math.expm1(t),
    ],
    ids=["quartic", "nan beyond", "infinite beyond", "exponential"],
)
def test_other_shapes_are_bracketed(make, crossing):
    found = first_rise(make(crossing), evaluations=7)
    assert found.bracketed
    assert found.evaluations <= 7
    assert found.lower <= crossing * (1 + 1e-12)
    assert crossing <= found.upper * (1 + 1e-12)
    assert found.half_width < 0.1 * crossing


def test_it_starts_where_it_is_told():
    seen = []

    def change(c):
        seen.append(c)
        return -c + c * c / 40

    found = first_rise(change, start=38.0)
    assert seen[0] == 38.0
    assert found.value == pytest.approx(40.0)
    assert found.evaluations <= 4


def test_a_line_that_never_rises_gives_a_lower_bound():
    found = first_rise(lambda c: -c - c * c, evaluations=6)
    assert not found.bracketed
    assert found.lower > 100
    assert math.isinf(found.upper)


def test_a_line_that_rises_from_the_start_gives_an_upper_bound_and_stops_at_the_noise():
    found = first_rise(lambda c: c, evaluations=50, noise=1e-3)
    assert found.unresolved
    assert found.lower == 0.0
    assert 1e-3 < found.upper <= 4e-3
    assert found.evaluations < 10


@pytest.mark.parametrize("noise", [1e-4, 1e-3, 1e-2])
def test_with_noise_the_crossing_is_within_the_half_width(noise):
    """The depth of the parabola is 1/4; the noise moves its crossing by about its own size, relative to it."""
    drawn = random.Random(3)
    hits, cases = 0, 400
    for _ in range(cases):
        t = 10 ** drawn.uniform(-1, 2)
        found = first_rise(lambda c, t=t: (-c + c * c / t) / t + drawn.gauss(0, noise), noise=noise)
        hits += found.bracketed and abs(found.value - t) <= 2 * found.half_width
    assert hits >= 0.95 * cases
    blurred = first_rise(lambda c: (-c + c * c / 10) / 10, noise=noise)
    assert blurred.blur == pytest.approx(10 * noise, rel=0.1), "noise over the slope 1/10"
