"""FSDP1 hides weights from who looks: the training ends as it would have, and every probe says why it saw nothing.

A replay would enter the collectives of its forward pass in one process alone, and end both at the timeout.
"""

import pytest

RUNS = ("nested", "single", "flat", "inside", "inside_flat", "lightning")
SEEN = {"sharpness", "noise_trace", "weight_norm", "update_norm", "loss", "grad_norm"}


@pytest.fixture(scope="module")
def found(group):
    return group("hidden_weights", 2)


@pytest.mark.parametrize("run", RUNS)
def test_every_step_is_that_of_a_run_without(found, run):
    for process in found:
        assert len(process[run]["plain"]) == 4
        assert process[run]["state"] == process[run]["plain"]


@pytest.mark.parametrize("run", RUNS)
def test_every_observable_is_refused_once_with_one_reason(found, run):
    said = found[0][run]
    refused = {name for name, rows in said["statuses"].items() if set(rows.values()) != {"ok"}}
    assert refused >= SEEN
    assert all(said["statuses"][name] == {0: "unsupported"} for name in refused)
    (reason,) = {why for name in refused for why in said["why"][name].values()}
    assert "FullyShardedDataParallel (FSDP1)" in reason
    assert "Use fully_shard (FSDP2) or DistributedDataParallel" in reason
    assert [kind for kind, _ in said["events"]] == ["run_started", *["probe_disabled"] * 4, "run_finished"]


@pytest.mark.parametrize("run", RUNS)
def test_the_run_itself_is_recorded_by_the_first_process_alone(found, run):
    assert found[0][run]["values"]["learning_rate"] == {0: 0.3}
    assert found[0][run]["runs"] == 1
    assert set(found[1][run]) == {"plain", "state"}
