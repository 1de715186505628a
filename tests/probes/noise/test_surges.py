"""Updates that are out of line: what they did to a window, and that nothing else is left out."""

import math

import numpy as np
import pytest

from learnmech.probes import HessianNoiseScale
from learnmech.probes.estimators import NoiseParts
from learnmech.probes.noise.hessian_weighted import WeightedParts
from learnmech.probes.noise.reasons import SUSPECTED
from learnmech.probes.noise.scale import NoiseTracker
from learnmech.probes.noise.surges import FACTOR, IN_A_ROW, LONG_ENOUGH, PATIENCE, SETTLED, Jumps
from learnmech.probes.noise.window import FEWEST, ExponentialWindow

BATCH = 32.0
TRUTH = 32.0  # noise scale: |G|^2 = 2 and tr Sigma = 64, both by Gaussian pieces below


def updates(rng, count, scale=1.0, dimension=50):
    """Estimates from four Gaussian pieces of 8, whose gradients are multiplied by `scale`."""
    mean = math.sqrt(2.0 / dimension)
    noise = math.sqrt(64.0 / dimension)
    g = mean + noise * rng.normal(size=(count, 4, dimension)) / math.sqrt(8)
    g *= np.broadcast_to(scale, count)[:, None, None]
    trace = 8 * g.var(axis=1, ddof=1).sum(axis=1)
    square = (g.mean(axis=1) ** 2).sum(axis=1) - trace / BATCH
    return [NoiseParts(float(b), float(a), BATCH, 4) for a, b in zip(trace, square, strict=True)]


def scales(tracker, parts):
    found = [tracker.update({"": part}, method="ranks") for part in parts]
    return [next(m for m in row if m.observable == "noise_scale") for row in found]


@pytest.mark.parametrize("size", [20.0, 1e3, 1e8])
def test_one_update_that_explodes_hides_nothing(size):
    rng = np.random.default_rng(1)
    tracker = NoiseTracker()
    scales(tracker, updates(rng, 60))
    (exploded,) = updates(rng, 1, size)
    found = tracker.update({"": exploded}, method="ranks")
    assert found[0].value == exploded.noise_trace  # it is recorded all the same
    assert tracker.window().left_out == 1
    after = scales(tracker, updates(rng, 20))
    assert {m.status for m in after} == {"ok"}
    assert after[-1].value == pytest.approx(TRUTH, rel=0.3)
    assert tracker.window().count == 80


@pytest.mark.parametrize("factor", [1e-3, 30.0])
def test_a_change_that_stays_begins_a_new_window(factor):
    rng = np.random.default_rng(2)
    tracker = NoiseTracker()
    scales(tracker, updates(rng, 60))
    after = scales(tracker, updates(rng, 30, factor))
    assert tracker.window().count == 30 - PATIENCE + 1
    moments = tracker.window().moments()
    assert moments.mean_a == pytest.approx(64 * factor**2, rel=0.2), "nothing of before is in it"
    assert after[-1].status == "ok"
    assert after[-1].value == pytest.approx(TRUTH, rel=0.4)


@pytest.mark.parametrize("dimension", [1, 4, 50])
def test_gaussian_noise_is_never_left_out(dimension):
    rng = np.random.default_rng(3)
    tracker, anew = NoiseTracker(), 0
    window = tracker.window()
    for part in updates(rng, 20_000, dimension=dimension):
        before = window.count
        tracker._take("", part, window)
        assert window.left_out == 0
        anew += window.count < before
    assert anew <= 1


@pytest.mark.parametrize(("deviation", "bias"), [(1.0, 0.01), (1.5, 0.03)])
def test_heavy_tails_are_hardly_biased(deviation, bias):
    """tr Sigma of updates that differ by log-normal factors: the mean of what is taken against that of all."""
    rng = np.random.default_rng(4)
    factors = np.exp(deviation * rng.normal(size=40_000) - deviation**2 / 2)
    tracker, kept = NoiseTracker(half_life=200.0), []
    for factor in factors.tolist():
        part = NoiseParts(2.0 * factor, 64.0 * factor, BATCH, 4)
        window = tracker.window()
        before = (window.count, window.left_out)
        tracker._take("", part, window)
        if (window.count, window.left_out) == (before[0] + 1, before[1]):
            kept.append(factor)
        else:
            assert window.left_out == before[1] + 1, "a new beginning would be a mistake"
    left = len(factors) - len(kept)
    print(f"deviation {deviation}: {left} of {len(factors)} left out, mean of the rest {np.mean(kept):.4f}")
    assert np.mean(kept) == pytest.approx(factors.mean(), rel=bias)


@pytest.mark.parametrize("usual", [30, 100])
@pytest.mark.parametrize("factor", [0.1, 0.5, 10.0])
def test_after_a_jump_of_the_noise_there_is_no_stale_number_for_long(usual, factor):
    """tr Sigma jumps, |G|^2 stays. Two measurements cannot tell, two more suspect; then the window begins anew."""
    rng = np.random.default_rng(6)
    tracker = NoiseTracker()

    def pairs(count, trace):
        noise = rng.normal(size=(count, 2))
        return [NoiseParts(float(2 + 0.3 * y), float(trace * (1 + 0.1 * x)), BATCH, 4) for x, y in noise]

    scales(tracker, pairs(usual, 64.0))
    after = scales(tracker, pairs(40, 64.0 * factor))
    assert [m.reason for m in after[2:4]] == [SUSPECTED] * 2
    waiting = after[IN_A_ROW - 1 : IN_A_ROW + FEWEST - 2]
    assert [m.status for m in waiting] == ["undetermined"] * (FEWEST - 1)
    assert waiting[0].reason == "1 measurement since the noise has jumped; a number takes 8"
    assert tracker.window().count == 41 - IN_A_ROW
    assert {m.status for m in after[IN_A_ROW + FEWEST :]} == {"ok"}
    assert after[-1].value == pytest.approx(TRUTH * factor, rel=0.2)
    tracker.reset()
    assert scales(tracker, pairs(1, 64.0))[0].reason == "1 measurement so far; a number takes 8"


def begun(pairs):
    """How often a window begins anew."""
    jumps, window, found = Jumps(), ExponentialWindow(25.0), 0
    for a, b in pairs:
        if jumps.judge(a, b, window.moments(), window.count):
            window.clear()
            found += 1
        window.append(a, b)
    return found


@pytest.mark.parametrize("rate", [0.01, -0.01, 0.02, -0.02, 0.05, -0.05])
def test_an_even_drift_is_no_jump(rate):
    rng = np.random.default_rng(7)
    for _ in range(20):
        noise = rng.normal(size=(100, 2))
        assert begun((math.exp(rate * k) * (1 + 0.08 * x), 1 + 0.5 * y) for k, (x, y) in enumerate(noise)) == 0


def test_a_jump_of_what_the_hessian_weighs():
    """Gaussian numbers about 64 and 2, of which the first falls to half."""
    rng, probe = np.random.default_rng(9), HessianNoiseScale()
    found = []
    for trace in [64.0] * 60 + [32.0] * 40:
        x, y = rng.normal(size=2)
        *_, scale = probe._measurements(WeightedParts(trace * (1 + 0.1 * x), 2 + 0.3 * y), "exact")
        found.append(scale)
    after = found[60:]
    assert found[59].value == pytest.approx(32, rel=0.3)
    assert [m.reason for m in after[2:4]] == [SUSPECTED] * 2
    assert after[IN_A_ROW - 1].reason == "1 measurement since the noise has jumped; a number takes 8"
    assert [m.status for m in after[IN_A_ROW - 1 :][: FEWEST - 1]] == ["undetermined"] * (FEWEST - 1)
    assert after[-1].value == pytest.approx(16, rel=0.3)
    probe.reset()
    *_, scale = probe._measurements(WeightedParts(64.0, 2.0), "exact")
    assert scale.reason == "1 measurement so far; a number takes 8"


def test_numbers_are_hardly_ever_withheld_for_nothing():
    rng, jumps, window, withheld = np.random.default_rng(10), Jumps(), ExponentialWindow(25.0), 0
    for a, b in rng.normal(size=(20_000, 2)).tolist():
        jumps.judge(a, b, window.moments(), window.count)
        window.append(a, b)
        withheld += jumps.suspected
    assert 0 < withheld < 0.002 * 20_000


def test_chance_is_no_jump():
    """Less than 1 % of runs of 500 measurements, of Gaussian numbers and of exponential ones: here of 100 000 each."""
    rng = np.random.default_rng(8)
    for pairs in (rng.normal(size=(100_000, 2)), rng.exponential(size=(100_000, 2))):
        assert begun(pairs.tolist()) <= 1
    assert begun([(1.0, 1.0)] * 100) == 0
    assert begun([(1.0, 1.0)] * (LONG_ENOUGH - 1) + [(2.0, 2.0)] * 5) == 0, "too early"


def test_nothing_is_out_of_line_before_anything_is_usual():
    rng = np.random.default_rng(5)
    tracker = NoiseTracker()
    scales(tracker, updates(rng, SETTLED - 1))
    scales(tracker, updates(rng, 1, 2 * FACTOR))
    assert tracker.window().left_out == 0
    tracker.reset()
    zero = [NoiseParts(0.0, 0.0, BATCH, 4)] * (SETTLED + 5)
    scales(tracker, [*zero, *updates(rng, 3)])
    assert (tracker.window().count, tracker.window().left_out) == (SETTLED + 8, 0)
