"""A recorder in every process of a training loop: one answer, on rank 0, and a training that never notices."""

import pytest
import torch

from learnmech.probes.budget import Governor

RUNS = ("ddp", "static", "resumed", "raises", "nan", "stopped", "budget", "slow", "alone")


@pytest.fixture(scope="module")
def found(group):
    return group("recorder", 2)


@pytest.mark.parametrize("run", [*RUNS, "fsdp", "fsdp both", "fsdp all", "slow sharded"])
def test_four_processes(group, run):
    """As two: nobody waits for ever, one process records, and the training is the same."""
    processes = group("recorder", 4)
    plain = "plain sharded" if "fsdp" in run or "sharded" in run else "plain static" if run == "static" else "plain"
    for process in processes:
        assert process[run]["state"] == process[plain]
    assert processes[0][run]["runs"] == 1
    if run == "raises":
        assert "process 3 of 4: KeyError" in processes[0][run]["reasons"][0]


@pytest.fixture
def weights_at(problem):
    """Train in one process as two would, with the mean of the gradients on their shards; return the model at a step."""

    def train(step, sizes):
        model, loss, data = problem()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
        cuts = torch.tensor(sizes).cumsum(0).tolist()
        shards = [tuple(t[a:b] for t in data) for a, b in zip([0, *cuts], cuts, strict=False)]
        for _ in range(step):
            optimizer.zero_grad()
            torch.stack([loss(model, shard) for shard in shards]).mean().backward()
            optimizer.step()
        return model, loss, tuple(t[: sum(sizes)] for t in data)

    return train


@pytest.mark.parametrize("run", RUNS)
def test_weights_are_those_of_a_run_without(found, run):
    for process in found:
        assert process[run]["state"] == process["plain static" if run == "static" else "plain"]


@pytest.mark.parametrize("run", ["fsdp", "fsdp both", "fsdp all", "slow sharded"])
def test_sharded_weights_are_those_of_a_run_without(found, run):
    for process in found:
        assert process[run]["state"] == process["plain sharded"]


@pytest.mark.parametrize(
    ("run", "sizes", "method"),
    [
        ("ddp", [4, 12], "double_backward"),
        ("static", [4, 12], "double_backward"),
        ("resumed", [4, 12], "double_backward"),
        ("fsdp", [8, 8], "finite_differences"),
    ],
)
def test_the_sharpness_is_that_of_all_data(found, weights_at, dense, run, sizes, method):
    # the same training in one process, and a dense Hessian on the union of the shards
    first = found[0][run]
    assert sorted(first["sharpness"]) == [0, 4, 8]
    assert first["methods"] == [method]
    for step, value in first["sharpness"].items():
        expected = float(torch.linalg.eigvalsh(dense(*weights_at(step, sizes)))[-1])
        assert value == pytest.approx(expected, rel=1e-6)


def test_gradients_are_seen_where_whole_parameters_are_left_between_micro_batches(found):
    seen = {
        name: set(steps.values()) for name, steps in found[0]["accumulating"].items() if name.startswith("grad_norm")
    }
    assert len(seen) >= 3
    assert set.union(*seen.values()) == {"ok"}, seen


def test_a_resumed_training_is_the_same_run(found):
    assert [found[0][run]["attempts"] for run in ("ddp", "resumed")] == [[0], [0, 1]]
    assert sorted(found[0]["resumed"]["values"]["weight_norm"]) == [0, 4, 8]


def test_passes_of_another_probe_are_no_pieces_of_the_update(found):
    """Sharded parameters are differentiated themselves: hooks on them see the passes of the sharpness, too."""
    assert found[0]["fsdp both"]["ways"]["noise_trace"] == dict.fromkeys((0, 4, 8), "ranks")
    assert sorted(found[0]["fsdp both"]["sharpness"]) == [0, 4, 8]


def test_only_the_first_process_records(found):
    assert all(found[0][run]["runs"] == 1 for run in RUNS)
    assert all(set(found[1][run]) == {"state"} for run in RUNS)


def test_a_probe_that_fails_in_one_process_is_disabled_in_all(found):
    run = found[0]["raises"]
    assert list(run["status"].values()) == ["failed"] * 3
    assert "process 1 of 2: KeyError" in run["reasons"][0]
    assert [kind for kind, _ in run["events"]].count("probe_disabled") == 1


def test_a_process_that_has_stopped_measuring_says_so(found):
    run = found[0]["stopped"]
    assert list(run["status"].values()) == ["ok"] * 3 + ["failed"] * 3
    assert "process 1 of 2" in run["reasons"][3]
    assert "stopped measuring" in run["reasons"][3]


def test_a_loss_that_is_not_finite_in_one_process(found):
    assert list(found[0]["nan"]["status"].values()) == ["non_finite"] * 3


def test_a_budget_is_kept_by_one_clock(found):
    # on unequal clocks the processes would measure at different steps and wait for one another for ever
    steps = sorted(found[0]["budget"]["sharpness"])
    assert steps[0] == 0
    assert len(steps) >= 2


@pytest.mark.parametrize("run", ["slow", "slow sharded"])
def test_a_slow_process_is_waited_for_and_holds_up_nothing_for_good(found, run):
    """The second one takes a tenth of a second more at each step and at each evaluation of the loss."""
    assert not {kind for kind, _ in found[0][run]["events"]} & {"probe_failed", "probe_disabled"}
    assert min(found[0][run]["sharpness"]) == 0
    assert len(found[0][run]["ways"]["noise_trace"]) >= 2


@pytest.mark.parametrize("sharded", [False, True])
def test_ordinary_steps_have_no_collective_of_ours(found, sharded):
    for process in found:
        without, recorded = process[f"ordinary {sharded}"]
        assert sum(without.values()) >= (6 if sharded else 0), "FSDP2's own are seen"
        assert recorded == without


def test_the_default_probes_measure_sharded_parameters_together(found):
    said = {message.partition(":")[0] for kind, message in found[0]["fsdp all"]["events"] if kind == "probe_disabled"}
    assert said == set()
    assert len(found[0]["fsdp all"]["sharpness"]) >= 1
    assert set(found[0]["fsdp all"]["ways"]["noise_trace"].values()) == {"ranks"}


def test_a_recorder_in_one_process_waits_for_nobody(found, weights_at, dense):
    # as before there was any measuring together: curvature of that process's own batch
    model, loss, data = weights_at(4, [4, 12])
    expected = float(torch.linalg.eigvalsh(dense(model, loss, tuple(t[:4] for t in data)))[-1])
    assert found[0]["alone"]["sharpness"][4] == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("share", [0.0, 0.005, 0.05])
def test_the_time_from_which_a_probe_may_run_is_the_governors_own(share):
    # against `may_run`, which is asked at every step where there is one process; bookkeeping takes a share of the time
    governor = Governor(0.02)
    for name in ("a", "b"):
        governor.open(name, governed=True)
    for seconds in (4.0, 1.0, 2.0):
        governor.charge("a", seconds)

    def may_run(elapsed):
        governor.bookkeeping = share * elapsed
        return governor.may_run("a", elapsed)

    assert not may_run(10.0)
    wait = governor.wait("a", 10.0)
    assert not may_run(10.0 + 0.999 * wait)
    assert may_run(10.0 + 1.001 * wait)
