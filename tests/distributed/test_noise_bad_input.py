"""Bad input in one of the processes that train together: a right number or a status, and the training as without."""

import math

import pytest

OK, BAD, NONE = ["ok"], ["non_finite"], ["undetermined"]
SKIP = [None]
CASES = {
    "Case": (OK * 7, ""),
    "Infinite": (OK * 3 + BAD * 4, "not finite"),
    "Zero": (OK * 7, ""),
    "AllZero": (NONE * 7, "is zero"),
    "Unused": (OK * 7, ""),
    "One": (OK * 7, ""),
    "Added": (OK * 3 + SKIP + OK * 3, ""),
    "AddedAndForgotten": (OK * 3 + SKIP + NONE * 3, "does not add up"),
}
"""Statuses at each step, and words of the reasons: where the gradient is zero or was changed there is no number."""


@pytest.fixture
def found(group):
    return group("noise_bad_input", 2)


@pytest.mark.parametrize("case", CASES)
def test_it_is_told_by_all_and_training_goes_on(found, case):
    statuses, words = CASES[case]
    for result in found:
        assert result[case]["state"] == result[case]["plain"]
    first = found[0][case]
    expected = {step: status for step, status in enumerate(statuses) if status}
    for name in ("noise_trace", "grad_sq_norm"):
        assert first["statuses"][name] == expected
        assert all(words in why for why in first["why"][name].values() if why)
    assert not [kind for kind, _ in first["events"] if kind in ("probe_failed", "probe_disabled", "probe_notice")]


@pytest.mark.parametrize("case", CASES)
def test_what_is_told_is_right(found, case):
    first = found[0][case]
    for index, name in enumerate(("noise_trace", "grad_sq_norm")):
        for step, value in first["values"][name].items():
            if first["statuses"][name][step] == "ok":
                assert value == pytest.approx(first["truth"][step][index], rel=1e-9, abs=1e-12)
            else:
                assert value is None or math.isnan(value)
