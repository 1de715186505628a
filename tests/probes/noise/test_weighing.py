"""Pieces that are weighed otherwise than the probe was told: found out from what they contribute.

Gaussian pieces of known |G|^2 and Sigma, weighed in one way and declared in another, are the oracle.
"""

import math

import numpy as np
import pytest
import torch

from learnmech.probes.noise.contributions import Sums, estimates
from learnmech.probes.noise.scale import NoiseTracker
from learnmech.probes.noise.weighing import ALIKE, BY_SIZE, Weighing

RUNS, UPDATES = 40, 150


def parts_of(rng, sizes, signal, dimension, *, by_size, declared, updates=UPDATES):
    """Estimates of updates of such pieces; `signal` is |G|^2 B / tr Sigma."""
    sizes = np.asarray(sizes, dtype=float)
    weights = sizes if by_size else np.ones_like(sizes)
    mean = math.sqrt(signal / sizes.sum())
    pieces = mean + rng.normal(size=(updates, len(sizes), dimension)) / np.sqrt(sizes)[:, None]
    given = pieces * (weights / weights.sum())[:, None]
    units = torch.tensor(sizes)
    sums = Sums(updates)
    squares = torch.from_numpy((given**2).sum(axis=2))
    sums.add_pieces(squares, weight=units if declared else 1.0, units=units)
    return estimates(sums.pack().tolist(), (given.sum(axis=1) ** 2).sum(axis=1).tolist())


CASES = [  # sizes, |G|^2 B / tr Sigma, directions of the noise
    ((16, 16, 16, 5), 0.01, 50),
    ((16, 16, 16, 5), 1.0, 4),
    ((16, 16, 16, 5), 100.0, 50),
    ((8, 24), 0.01, 4),
    ((8, 24), 1.0, 50),
    ((10, 14, 12, 20, 9, 16, 11, 13), 1.0, 50),
]


@pytest.mark.parametrize(("sizes", "signal", "dimension"), CASES)
@pytest.mark.parametrize("by_size", [False, True])
def test_wrong_weights_are_found_and_right_ones_are_not(sizes, signal, dimension, by_size):
    rng = np.random.default_rng(1)
    false, needed = 0, []
    for _ in range(RUNS):
        right, wrong = Weighing(25.0), Weighing(25.0)
        parts = parts_of(rng, sizes, signal, dimension, by_size=by_size, declared=by_size)
        false += any(right.contradicted(part) for part in parts)
        parts = parts_of(rng, sizes, signal, dimension, by_size=by_size, declared=not by_size)
        said = [wrong.contradicted(part) for part in parts]
        assert set(said) <= {"", BY_SIZE if by_size else ALIKE}
        needed.append(next((count for count, why in enumerate(said, 1) if why), 10 * UPDATES))
    print(
        f"sizes {sizes}, signal {signal}, dimension {dimension}, by size {by_size}: found after "
        f"{np.median(needed):.0f} updates (90 %: {np.quantile(needed, 0.9):.0f}); false in {false} of {RUNS} runs"
    )
    assert false == 0
    assert np.quantile(needed, 0.9) < UPDATES


@pytest.mark.parametrize("sizes", [(16, 16, 16), (50, 52), (1, 1, 1), (7,)])
def test_sizes_that_hardly_differ_tell_nothing(sizes):
    parts = parts_of(np.random.default_rng(2), sizes, 1.0, 4, by_size=True, declared=False, updates=3)
    assert all(math.isnan(part.lean) for part in parts)


def test_what_wrong_weights_gave_is_forgotten_and_the_reason_names_the_argument():
    rng = np.random.default_rng(3)
    tracker = NoiseTracker()
    tracker._begun.add("")  # as after a jump, which is forgotten too
    found, counts = [], []
    for part in parts_of(rng, (16, 16, 16, 5), 1.0, 50, by_size=True, declared=False):
        found.append({m.observable: m for m in tracker.update({"": part, "head": part}, method="micro_batches")})
        counts.append(tracker.window("head").count)
    first = next(k for k, row in enumerate(found) if row["noise_trace"].status == "undetermined")
    assert "GradientNoiseScale(weighted=True)" in found[first]["noise_scale"].reason
    assert counts[first - 1] == first
    assert counts[first] == 0
    assert found[-1]["noise_trace"].value is None
    # from pieces of one size it goes on
    alike = parts_of(rng, (16, 16, 16, 16), 1.0, 50, by_size=True, declared=False, updates=1)[0]
    assert {m.status for m in tracker.update({"": alike}, method="micro_batches")} <= {"ok", "undetermined"}
    assert tracker.window().count == 1
    (scale,) = (m for m in tracker.update({"": alike}, method="micro_batches") if m.observable == "noise_scale")
    assert scale.reason.startswith("2 measurements so far")
    tracker.reset()
    assert tracker.update({"": part}, method="micro_batches")[0].status == "ok"
