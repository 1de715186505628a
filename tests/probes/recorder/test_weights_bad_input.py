"""Weights and gradients that have no norm, angle or gradient: a status with its reason, and training goes on."""

import math

import pytest
import torch
from torch import nn

from learnmech.probes import Recorder, WeightDynamics, every


@pytest.fixture
def steps(spool):
    """`steps(model, optimizer, change)`: what three steps recorded; `change(model, step)` acts before each update."""

    def train(model, optimizer, change=lambda model, step: None, inputs=(4, 4), **settings):
        loss_fn = lambda model, x: model(x).square().mean()
        probe = WeightDynamics(every(1), **settings)
        with Recorder(model, optimizer, loss_fn, [probe], sink=spool.url, budget=0) as recorder:
            for step in range(3):
                x = torch.randn(inputs) if isinstance(inputs, tuple) else inputs
                model.zero_grad()
                loss = loss_fn(model, x)
                loss.backward()
                change(model, step)
                recorder.after_backward(x)
                optimizer.step()
                recorder.after_step(x, loss)
        run = spool()
        assert not run.of_kind("probe_failed")
        return run

    return train


def one(run, observable, scope, step):
    """Return the only measurement of a series at a step."""
    (found,) = [m for at, m in run.all(observable, scope) if at == step]
    return found


def test_parameters_that_never_get_a_gradient(steps):
    model = nn.ModuleDict({"used": nn.Linear(4, 4), "idle": nn.Linear(4, 4)})
    model.forward = model["used"].forward
    run = steps(model, torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1))
    idle = one(run, "grad_norm", "idle", 1)
    assert (idle.value, idle.status) == (None, "unsupported")
    assert "no gradient of these parameters" in idle.reason
    assert one(run, "update_norm", "idle", 1).value == 0.0
    assert one(run, "weight_decay_share", "idle", 1).status == "undetermined"
    assert one(run, "grad_norm", "used", 1).value == one(run, "grad_norm", "type:Linear", 1).value > 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_gradients_that_are_not_finite(steps, bad):
    def spoil(model, step):
        if step == 1:
            model.weight.grad[0, 0] = bad

    run = steps(nn.Linear(4, 4), torch.optim.SGD([torch.zeros(1)], lr=0.0), spoil)  # the update itself is left out
    assert one(run, "grad_norm", "weight", 0).status == "ok"
    assert one(run, "grad_norm", "weight", 1).status == "non_finite"
    assert one(run, "weight_norm", "weight", 1).status == "ok"
    assert one(run, "grad_norm", "bias", 1).status == "ok", "of another scope"
    assert one(run, "grad_norm", "weight", 2).status == "ok", "it passes"


def test_weights_that_are_not_finite(steps):
    def spoil(model, step):
        if step == 1:
            model.weight.data[0, 0] = math.inf

    model = nn.Linear(4, 4)
    run = steps(model, torch.optim.SGD(model.parameters(), lr=0.1), spoil)
    for observable in ("weight_norm", "weight_rms", "update_norm", "relative_update", "angular_update"):
        assert one(run, observable, "weight", 1).status == "non_finite", observable
    assert one(run, "fluctuation_dissipation", "weight", 1).status != "ok"


def test_all_zero_weights_and_gradients(steps):
    model = nn.Linear(4, 4)
    for parameter in model.parameters():
        parameter.data.zero_()
    run = steps(model, torch.optim.AdamW(model.parameters(), lr=0.1))
    for observable in ("relative_update", "angular_update"):
        found = one(run, observable, "", 0)
        assert (found.value, found.status, found.reason) == (None, "undetermined", "the weights are zero")
    assert one(run, "weight_norm", "", 0).value == 0.0
    assert one(run, "grad_norm", "weight", 0).value == 0.0
    assert one(run, "weight_decay_share", "", 0).reason == "nothing was updated"


def test_an_update_that_zeroes_the_weights(steps):
    model = nn.Linear(4, 4, bias=False)

    def copy(model, step):
        model.weight.grad.copy_(model.weight.data)

    run = steps(model, torch.optim.SGD(model.parameters(), lr=1.0), copy)
    assert one(run, "angular_update", "", 0).reason == "the update has set the weights to zero"
    assert one(run, "relative_update", "", 0).value == pytest.approx(1.0)


def test_sparse_gradients(steps):
    tokens = torch.tensor([[1, 1], [2, 5]])
    norms = {}
    for sparse in (True, False):
        torch.manual_seed(0)
        model = nn.Embedding(10, 4, sparse=sparse)
        run = steps(model, torch.optim.SGD(model.parameters(), lr=0.1), inputs=tokens)
        norms[sparse] = run.values("grad_norm", "weight")[0], run.values("update_norm")[0]
    assert norms[True] == pytest.approx(norms[False], rel=1e-5)


def test_complex_weights_have_their_true_norm(steps):
    model = nn.Module()
    model.w = nn.Parameter(torch.tensor([3.0 + 4.0j, 0.0j]))
    model.forward = lambda x: (model.w * x[0, 0]).abs()
    run = steps(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert run.values("weight_norm")[0] == pytest.approx(5.0)
    assert run.values("weight_rms")[0] == pytest.approx(5.0 / 2.0), "four real numbers"


def test_parameters_that_come_and_go(steps):
    model = nn.Sequential(nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def change(model, step):
        if step == 1:
            model.append(nn.Linear(4, 4))
            optimizer.add_param_group({"params": model[1].parameters(), "lr": 0.2})
        if step == 2:
            model[0].weight.requires_grad_(False)
            model[0].weight.grad = None

    run = steps(model, optimizer, change, parameter_groups=True)
    assert list(run.values("weight_norm", "1")) == [1, 2]
    assert one(run, "grad_norm", "1", 1).status == "unsupported"
    assert one(run, "grad_norm", "1", 2).status == "ok"
    assert run.values("learning_rate", "group:1") == {1: 0.2}
    assert one(run, "weight_norm", "0", 2).value == pytest.approx(model[0].bias.norm().item(), rel=0.2), (
        "the bias alone"
    )
    assert list(run.values("weight_norm")) == [0, 1, 2]


def test_a_parameter_replaced_between_the_two_looks(spool):
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss_fn = lambda model, x: model(x).square().mean()
    with Recorder(model, optimizer, loss_fn, [WeightDynamics(every(1))], sink=spool.url, budget=0) as recorder:
        x = torch.randn(4, 4)
        loss_fn(model, x).backward()
        recorder.after_backward(x)
        model.weight = nn.Parameter(torch.randn(2, 4))
        optimizer.param_groups[0]["params"][0] = model.weight
        recorder.after_step(x)
    assert not spool().of_kind("probe_failed")
    assert list(spool().values("weight_norm", "bias")) == [0]
    assert not spool().values("weight_norm", "weight")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: torch.optim.AdamW(p, lr=0.1), "torch.optim.SGD"),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), "Nesterov"),
    ],
)
def test_optimizers_without_a_fluctuation_dissipation_relation(steps, make, reason):
    model = nn.Linear(4, 4)
    run = steps(model, make(model.parameters()))
    ((step, said),) = run.all("fluctuation_dissipation")
    assert (step, said.status, said.value) == (0, "unsupported", None)
    assert reason in said.reason
    assert not run.all("fluctuation_dissipation", "type:Linear"), "said once, not in every scope"


def test_an_optimizer_that_climbs(steps):
    """With the sign of the loss turned, everything but the gradient is the same."""
    found = []
    for maximize in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(4, 4)
        sign = -1.0 if maximize else 1.0
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1, maximize=maximize)

        def turn(model, step, sign=sign):
            for parameter in model.parameters():
                parameter.grad *= sign

        run = steps(model, optimizer, turn)
        found.append([run.values(name)[2] for name in ("weight_decay_share", "fluctuation_dissipation", "weight_norm")])
    assert found[1] == pytest.approx(found[0])


def test_what_cannot_be_asked_for():
    for wrong in ({"limit": 0}, {"half_life": 0.5}, {"half_life": math.inf}):
        with pytest.raises(ValueError, match="expected"):
            WeightDynamics(**wrong)


def test_held_weights_are_left_out_of_pickles(picklable):
    probe = WeightDynamics(every(5), per_parameter=True)
    probe._before = {"w": torch.zeros(3)}
    copy = picklable(probe)
    assert copy._before == {}
    assert copy.per_parameter
