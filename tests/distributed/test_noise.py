"""Gradient noise from the processes that train together: their pieces against the same pieces in one process."""

import pytest

CASES = [
    "ddp",
    "ddp accumulated",
    "ddp hook: torch's",
    "ddp hook: own",
    "ddp accumulated hook: own",
    "ddp clipped",
    "fsdp",
    "fsdp accumulated",
]
ROUNDED, LOSSY = "ddp hook: fp16", {"ddp hook: signs": 0, "ddp hook: low rank": 2}
"""Communication hooks that send something else than the gradient, and the step from which they do."""


@pytest.fixture
def found(group, size):
    return group("noise", size)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("case", CASES)
def test_pieces_of_all_processes_count(found, size, case):
    first = found[0]
    traces, squares = (first[case]["values"][name] for name in ("noise_trace", "grad_sq_norm"))
    # after clipping the trainings part after the first step
    steps = 1 if "clipped" in case else 3
    expected = first["expected"][3 if "accumulated" in case else 1][:steps]
    for step, (trace, square) in enumerate(expected):
        assert traces[step] == pytest.approx(trace, rel=1e-9)
        assert squares[step] == pytest.approx(square, rel=1e-9, abs=1e-12)
    method = "ranks_and_micro_batches" if "accumulated" in case else "ranks"
    assert set(first[case]["ways"]["noise_trace"].values()) == {method}


@pytest.mark.parametrize("size", [2, 4])
def test_a_hook_that_rounds_changes_no_more_than_rounding_does(found, size):
    """float16 has 11 bits: half a unit in the last place is 2^-12, of a square 2^-11, and training follows."""
    first = found[0][ROUNDED]
    for step, (trace, square) in enumerate(found[0]["expected"][1]):
        assert first["values"]["noise_trace"][step] == pytest.approx(trace, rel=2e-3)
        assert first["values"]["grad_sq_norm"][step] == pytest.approx(
            square, abs=2e-3 * (abs(square) + trace / 4 / size)
        )
    assert set(first["statuses"]["noise_trace"].values()) == {"ok"}


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("case", LOSSY)
def test_a_hook_that_loses_most_of_the_gradient_ends_in_no_number(found, size, case):
    """What the optimizer gets is not the mean of what the processes contributed, and is not taken for it."""
    first = found[0][case]
    for name, index in (("noise_trace", 0), ("grad_sq_norm", 1)):
        for step, value in first["values"][name].items():
            if step < LOSSY[case]:
                assert value == pytest.approx(found[0]["expected"][1][step][index], rel=1e-9, abs=1e-12)
            else:
                assert (value, first["statuses"][name][step]) == (None, "undetermined")
                assert "does not add up to the gradient" in first["why"][name][step]
    assert sorted(first["values"]["noise_trace"]) == [0, 1, 2]


@pytest.mark.parametrize("size", [2, 4])
def test_examples_of_all_processes_count(found, size):
    first = found[0]["ddp examples"]
    assert set(first["ways"]["noise_trace"].values()) == {"examples"}
    for step in (1, 2):  # the first update tells how many there are
        trace, square = found[0]["expected examples"][step]
        assert first["values"]["noise_trace"][step] == pytest.approx(trace, rel=1e-9)
        assert first["values"]["grad_sq_norm"][step] == pytest.approx(square, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("case", [*CASES, ROUNDED, *LOSSY, "ddp examples", "broken"])
def test_the_training_is_as_without(found, size, case):
    for result in found:
        assert result[case]["state"] == result[case]["plain"]


@pytest.mark.parametrize("size", [2])
def test_an_update_that_one_process_has_not_seen_is_left_out_by_all(found, size):
    assert sorted(found[0]["broken"]["values"]["noise_trace"]) == [0, 2]
