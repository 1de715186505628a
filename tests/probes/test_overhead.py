"""The recent overhead: a sum over the last 500 steps or more, here against one computed from all steps."""

import pytest

from learnmech.probes.overhead import WINDOW, Overhead


def test_it_is_told_over_the_last_500_steps_or_a_little_more():
    overhead = Overhead(100)
    spent_at = [0.5 if step % 700 == 0 else 0.001 for step in range(5000)]
    recorded = 0
    for step in range(103, 5000, 7):
        found = overhead.measured(step, elapsed=2.0 * (step - 100), spent=sum(spent_at[100:step]))
        named = {m.observable: m.value for m in found}
        assert named["overhead"] == pytest.approx(sum(spent_at[100:step]) / (2.0 * (step - 100)))
        if "overhead_recent" in named:
            recorded += 1
            windows = [sum(spent_at[b:step]) / (2.0 * (step - b)) for b in range(step - WINDOW - 7, step - WINDOW + 1)]
            assert any(named["overhead_recent"] == pytest.approx(window) for window in windows)
        else:
            assert step - 100 < WINDOW + 7
    assert recorded > 600


def test_fast_steps_have_a_longer_window():
    overhead = Overhead(0)
    overhead.measured(10_000, 1.0, 0.9)
    [_, recent] = overhead.measured(20_000, 2.0, 1.0)
    assert recent.value == pytest.approx(0.1)


def test_nothing_is_said_before_time_has_passed():
    assert Overhead(0).measured(0, 0.0, 0.0) == []
