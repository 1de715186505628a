"""What is recorded of the noise: coverage on per-example gradients of a network, and what is said when it is not known.

The oracle is all per-example gradients, each computed by itself: G and Sigma of the data set are known exactly.
"""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from learnmech.laws.batch_size import speedup
from learnmech.observables import Status, is_declared
from learnmech.probes.estimators import NoiseParts
from learnmech.probes.estimators.ratio import ratio_now
from learnmech.probes.noise.contributions import Sums, estimates
from learnmech.probes.noise.reasons import with_left_out
from learnmech.probes.noise.scale import NoiseTracker
from learnmech.probes.noise.window import FEWEST, RESOLVED

REPEATS = 500


def recorded(tracker, pairs, **settings):
    """What the last of several updates records, by name."""
    found = []
    for trace, square in pairs:
        found = tracker.update({"": NoiseParts(square, trace, 32.0, 4)}, method="ranks", **settings)
    return {m.observable: m for m in found}


def noisy(mean_trace, mean_square, error, count=60, seed=0):
    """Pairs about a mean; each deviation is followed by its opposite, so that the mean is met."""
    noise = error * torch.randn(count // 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (torch.stack([noise, -noise], dim=1).view(count, 2) + torch.tensor([mean_trace, mean_square])).tolist()


@pytest.fixture(scope="module")
def gradients():
    """Per-example gradients of a network, and what else it takes to make their mean small: [256, numbers]."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x = torch.randn(256, 6, dtype=torch.float64)
    y = (x[:, 0] + 0.5 * torch.randn(256) > 0).long() + (x[:, 1] > 1).long()
    rows = []
    for i in range(256):
        found = torch.autograd.grad(cross_entropy(model(x[i : i + 1]), y[i : i + 1]), model.parameters())
        rows.append(torch.cat([g.flatten() for g in found]))
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("source", "share", "resolved"),
    [("ranks", 1.0, True), ("micro_batches", 1.0, True), ("examples", 0.5, True), ("ranks", 0.05, False)],
)
def test_interval_covers_the_truth_on_a_network(gradients, source, share, resolved):
    """Batches of 24 of the 256 examples. `share` is how much of the mean gradient is left: training makes it small."""
    rows = gradients - (1 - share) * gradients.mean(dim=0)
    square = rows.mean(dim=0).square().sum().item()
    trace = rows.var(dim=0, unbiased=True).sum().item()
    sizes = {"ranks": (6, 6, 6, 6), "micro_batches": (8, 8, 5, 3), "examples": (1,) * 24}[source]
    units = torch.tensor(sizes, dtype=torch.float64)
    weights = torch.ones(len(sizes)) if source == "ranks" else units
    shares = (weights / weights.sum())[:, None]
    owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    generator = torch.Generator().manual_seed(1)
    covered, numbers, wrong, means = 0, 0, 0, []
    measurements = 40
    for _ in range(REPEATS):
        tracker = NoiseTracker(half_life=15.0)
        drawn = torch.stack([torch.randperm(256, generator=generator)[:24] for _ in range(measurements)])
        pieces = torch.zeros(measurements, len(sizes), rows.shape[1], dtype=torch.float64)
        pieces.index_add_(1, owner, rows[drawn]).div_(units[:, None])
        contributions = shares * pieces
        squares, whole = contributions.square().sum(dim=2), contributions.sum(dim=1).square().sum(dim=1)
        sums = Sums(measurements)  # the same arithmetic for each, as if they were scopes of one update
        sums.add_pieces(squares, weight=weights, units=units)
        for part in estimates(sums.pack().tolist(), whole.tolist(), population=256):
            found = tracker.update({"": part}, method=source)
            means.append((part.noise_trace, part.grad_sq_norm))
        (scale,) = (m for m in found if m.observable == "noise_scale")
        ratio = ratio_now(tracker.window().moments(), RESOLVED)
        inside = ratio.lower <= trace / square <= ratio.upper
        covered += (
            inside if ratio.bounded else math.isinf(ratio.lower) or not ratio.lower < trace / square < ratio.upper
        )
        numbers += scale.value is not None
        wrong += scale.value is not None and not inside
    print(
        f"{source}, noise scale {trace / square:.3g}: covers {covered / REPEATS:.1%}, numbers {numbers}, wrong {wrong}"
    )
    for index, truth in enumerate((trace, square)):
        values = torch.tensor([pair[index] for pair in means], dtype=torch.float64)
        error = values.std().item() / math.sqrt(len(values))
        assert abs(values.mean().item() - truth) <= 3 * error
    assert 0.92 <= covered / REPEATS <= 0.98
    assert numbers >= 0.99 * REPEATS if resolved else numbers <= 0.02 * REPEATS


def test_what_is_recorded():
    found = recorded(NoiseTracker(), noisy(64.0, 2.0, 0.2), effective_learning_rate=0.1, population=320)
    names = ["noise_trace", "grad_sq_norm", "noise_scale", "signal_to_noise", "doubling_speedup", "temperature"]
    assert list(found) == names
    assert all(is_declared(name) for name in names)
    assert {m.status for m in found.values()} == {Status.OK}
    assert (found["noise_trace"].method, found["noise_scale"].method) == ("ranks", "ranks_window_of_49")
    last = noisy(64.0, 2.0, 0.2)[-1]
    assert [found["noise_trace"].value, found["grad_sq_norm"].value] == last  # of this update, not of the window
    scale = found["noise_scale"]
    assert scale.value == pytest.approx(32.0, rel=0.05)
    # by linearization, good where both are resolved: relative errors add up in quadrature
    errors = [found[name].stderr / mean for name, mean in (("noise_trace", 64), ("grad_sq_norm", 2))]
    assert errors == pytest.approx([0.2 / 64, 0.2 / 2], rel=0.4)
    assert scale.stderr == pytest.approx(32 * math.hypot(*errors) / math.sqrt(49), rel=0.05)
    assert found["signal_to_noise"].value == pytest.approx(32 / scale.value, rel=1e-3)
    assert found["signal_to_noise"].stderr == pytest.approx(scale.stderr / scale.value, rel=0.05)
    assert found["doubling_speedup"].value == pytest.approx(speedup(32, 64, scale.value))
    slope = (speedup(32, 64, 33.0) - speedup(32, 64, 31.0)) / 2
    assert found["doubling_speedup"].stderr == pytest.approx(slope * scale.stderr, rel=0.1)
    assert found["temperature"].value == pytest.approx(0.1 * 64 / 32 * (1 - 32 / 320), rel=0.01)
    assert found["temperature"].stderr == pytest.approx(0.1 * 64 * errors[0] / math.sqrt(49) / 32 * 0.9, rel=0.02)


def test_scopes_have_their_own_windows_and_fewer_numbers():
    tracker = NoiseTracker()
    for trace, square in noisy(64.0, 2.0, 0.2):
        parts = {"": NoiseParts(square, trace, 32.0, 4), "head": NoiseParts(square, 3 * trace, 32.0, 4)}
        found = tracker.update(parts, method="ranks")
    scale = {m.scope: m.value for m in found if m.observable == "noise_scale"}
    assert scale["head"] == pytest.approx(3 * scale[""])
    assert sum(m.scope == "head" for m in found) == 4
    assert sum(m.scope == "" for m in found) == 5
    assert "temperature" not in {m.observable for m in found}
    tracker.reset()
    assert tracker.window("head").count == 0
    found = recorded(tracker, noisy(64.0, 2.0, 0.2), batch_size=320.0)  # the pieces are a part of the update
    assert found["signal_to_noise"].value == pytest.approx(320 / found["noise_scale"].value, rel=1e-3)


@pytest.mark.parametrize(
    ("pairs", "reason"),
    [
        ([(64.0, 2.0)], "1 measurement so far; a number takes 8"),
        (noisy(64.0, 2.0, 0.2, count=6), "6 measurements so far; a number takes 8"),
        ([(0.0, 0.0)] * 5, "all gradients are zero"),
        ([(64.0 * 0.9**k, 2.0 + 0.1 * (-1) ** k) for k in range(40)], "tr Sigma falls to zero: the noise scale is at"),
        (noisy(64.0, 0.0, 3.0), "|G|^2 is not resolved from zero over 60 measurements: the noise scale is at least"),
        (noisy(64.0, 1.4, 3.0), "more than a factor of 4 apart"),
        (noisy(0.0, 64.0, 3.0), "tr Sigma is not resolved from zero: the noise scale is at most"),
        (noisy(64.0, -20.0, 3.0), "|G|^2 came out negative beyond its error: the pieces are not independent"),
    ],
)
def test_undetermined_says_why_and_what_is_known(pairs, reason):
    found = recorded(NoiseTracker(), pairs)
    scale = found["noise_scale"]
    assert (scale.value, scale.stderr, scale.status) == (None, None, Status.UNDETERMINED)
    assert reason in scale.reason
    assert found["grad_sq_norm"].status is Status.OK
    for measurement in found.values():
        assert (measurement.value is None) == (measurement.status is Status.UNDETERMINED)
        assert measurement.value is None or math.isfinite(measurement.value)
        assert bool(measurement.reason) == (measurement.status is not Status.OK)


def test_what_follows_may_be_known_where_the_noise_scale_is_not():
    found = recorded(NoiseTracker(), noisy(6400.0, 0.0, 30.0))
    assert found["noise_scale"].status is Status.UNDETERMINED
    assert float(found["noise_scale"].reason.split()[-1]) > 300
    assert 1.9 < found["doubling_speedup"].value <= 2.0
    least = float(found["noise_scale"].reason.split()[-1])  # the noise scale may be that, or infinite
    assert found["doubling_speedup"].stderr == pytest.approx((2 - speedup(32, 64, least)) / (2 * 2.01), rel=0.02)
    signal = found["signal_to_noise"]
    assert abs(signal.value) < 3 * signal.stderr < 0.1


def test_updates_without_estimates_are_reported_and_left_out():
    tracker = NoiseTracker()
    recorded(tracker, noisy(64.0, 1.4, 3.0))
    nan = math.nan
    broken = NoiseParts(nan, nan, 32.0, 4, Status.NON_FINITE, "the gradient of 1 of 4 pieces is not finite")
    single = NoiseParts(nan, nan, 32.0, 1, Status.UNDETERMINED, "the gradient came in one piece only")
    found = tracker.update({"": broken}, method="ranks")
    assert [m.observable for m in found] == ["noise_trace", "grad_sq_norm", "noise_scale"]
    assert all(math.isnan(m.value) and m.status is Status.NON_FINITE and m.reason == broken.reason for m in found)
    found = tracker.update({"": single}, method="ranks")
    assert all(m.value is None and m.status is Status.UNDETERMINED and m.reason == single.reason for m in found)
    window = tracker.window()
    assert (window.count, window.left_out) == (60, 2)
    assert recorded(tracker, [(64.0, 1.4)])["noise_scale"].reason.endswith("; 2 measurements were left out")
    assert with_left_out("why", SimpleNamespace(left_out=1)) == "why; 1 measurement was left out"
    assert with_left_out("why", SimpleNamespace(left_out=0)) == "why"


def test_ratios_take_eight_measurements():
    """Of fewer those with a narrow interval are chosen by chance: of two such intervals one covered the truth."""
    tracker, known = NoiseTracker(), []
    for trace, square in noisy(64.0, 2.0, 0.2, count=10):
        found = {m.observable: m for m in tracker.update({"": NoiseParts(square, trace, 32.0, 4)}, method="ranks")}
        ratios = [found[name] for name in ("noise_scale", "signal_to_noise", "doubling_speedup")]
        known.append({m.status for m in ratios})
        assert len({m.reason for m in ratios}) == 1
        assert found["noise_trace"].value == trace
    assert known == [{Status.UNDETERMINED}] * (FEWEST - 1) + [{Status.OK}] * (11 - FEWEST)


def test_a_wrong_half_life_is_told_at_once():
    with pytest.raises(ValueError, match="expected 1 or more"):
        NoiseTracker(half_life=0.0)
