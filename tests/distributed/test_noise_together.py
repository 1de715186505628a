"""Processes that share a noise probe under a budget: one decision, no deadlock, and a training that never notices."""

import pytest

RUNS = ("budget", "slow", "arm fails", "prepare fails", "measure fails")


@pytest.fixture(scope="module")
def found(group):
    return group("noise_together", 2)


@pytest.mark.parametrize("run", RUNS)
def test_weights_are_those_of_a_run_without(found, run):
    for process in found:
        assert process[run]["state"] == process["plain"]


@pytest.mark.parametrize("run", RUNS)
def test_all_processes_take_the_same_decision(found, run):
    first, second = (process[run]["armed"] for process in found)
    assert first == second
    assert len(first) >= 3


@pytest.mark.parametrize("run", ["budget", "slow"])
def test_what_was_watched_is_measured(found, run):
    run = found[0][run]
    steps = [step for step in run["armed"] if step < 40]
    assert sorted(run["values"]["noise_trace"]) == steps == run["measured"]
    assert set(run["ways"]["noise_trace"].values()) == {"ranks"}
    assert not run["events"] or "probe_failed" not in {kind for kind, _ in run["events"]}


@pytest.mark.parametrize("what", ["arm", "prepare", "measure"])
def test_a_failure_in_one_process_is_one_failed_measurement_of_all(found, what):
    run = found[0][f"{what} fails"]
    statuses = run["statuses"]["noise_trace"]
    assert list(statuses.values()).count("failed") == 1
    assert list(statuses.values()).count("ok") >= 1
    (step,) = [step for step, status in statuses.items() if status == "failed"]
    reason = run["why"]["noise_trace"][step]
    assert "process 1 of 2" in reason
    assert f"{what} in one process" in reason
    assert max(statuses) > step, "and they go on together"


def test_where_processes_may_run_out_of_data_one_after_the_other_they_do_not_wait_for_one_another(found):
    """Under `model.join()` the one that has ended meets the others in the averages of gradients alone."""
    for process in found:
        assert process["join"]["state"] == process["join"]["plain"]
    run = found[0]["join"]
    assert list(run["statuses"]["noise_trace"].values()) == ["unsupported"]
    assert "Join" in next(iter(run["why"]["noise_trace"].values()))
