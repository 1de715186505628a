"""A monitor under Lightning's strategies, with validation between the steps: parameters come gathered from there."""

import pytest
import torch

STRATEGIES = {"ddp": "double_backward", "model_parallel": "finite_differences"}


@pytest.fixture(scope="module")
def found(group):
    return group("monitor", 2)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_training_is_the_same_bit_for_bit(found, strategy):
    for process in found:
        assert process[strategy]["state"] == process[strategy]["plain"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_sharpness_is_that_of_the_batches_of_both_processes(found, problem, dense, strategy):
    # one batch of 8 a process and epoch: together the 16 examples, whatever the sampler's order; plain descent on them
    model, loss, data = problem()
    batch = tuple(t[:16] for t in data)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    values = found[0][strategy]["sharpness"]
    assert sorted(values) == [2, 4]
    for step in range(5):
        if step in values:
            expected = float(torch.linalg.eigvalsh(dense(model, loss, batch))[-1])
            assert values[step] == pytest.approx(expected, rel=1e-6)
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()
    assert found[0][strategy]["methods"] == [STRATEGIES[strategy]]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_change_of_the_loss_is_that_of_the_batches_of_both_processes(found, problem, dense, strategy):
    model, loss, data = problem()
    batch = tuple(t[:16] for t in data)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    told = found[0][strategy]["values"]
    assert sorted(told["loss_change"]) == [0, 2, 4]
    for step in range(5):
        h = dense(model, loss, batch)
        optimizer.zero_grad()
        before = loss(model, batch)
        before.backward()
        g = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
        optimizer.step()
        if step in told["loss_change"]:
            assert told["loss_change"][step] == pytest.approx((loss(model, batch) - before).item(), rel=1e-9)
            assert told["update_sharpness"][step] == pytest.approx(float(g @ h @ g / (g @ g)), rel=1e-6)
    assert set(found[0][strategy]["ways"]["loss_change_predicted"].values()) == {STRATEGIES[strategy]}


def test_only_the_first_process_records(found):
    for strategy in STRATEGIES:
        assert found[0][strategy]["runs"] == 1
        assert set(found[1][strategy]) == {"plain", "state"}
