"""The small parts around probes: hyperparameters, context, reading back."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from learnmech.observables import is_declared
from learnmech.probes import GradientNoiseScale, Sharpness, Vitals, WeightDynamics
from learnmech.probes.context import batch_coupling, describe
from learnmech.probes.full_batch import PAUSE, FullBatch
from learnmech.probes.hyperparameters import Hyperparameters
from learnmech.probes.readback import Readback


def parameter():
    return nn.Parameter(torch.zeros(2, 2))


def changed(watched):
    """Return what is recorded now."""
    found = []
    watched.read(Readback().submit, found.extend)
    return found


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
            {"learning_rate": 0.1, "momentum": 0.9, "dampening": 0, "nesterov": 1, "weight_decay": 0.01}
            | {"decoupled_weight_decay": 0},
        ),
        (
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5, dampening=0.5),
            {"learning_rate": 0.1, "momentum": 0.5, "dampening": 0.5, "nesterov": 0, "weight_decay": 0}
            | {"decoupled_weight_decay": 0},
        ),
        (
            lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.8, 0.99), eps=1e-7, weight_decay=0.01),
            {"learning_rate": 0.1, "beta1": 0.8, "beta2": 0.99, "epsilon": 1e-7, "weight_decay": 0.01}
            | {"decoupled_weight_decay": 0},
        ),
        (
            lambda p: torch.optim.AdamW(p, lr=0.1),
            {"learning_rate": 0.1, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.01}
            | {"decoupled_weight_decay": 1},
        ),
        (
            lambda p: torch.optim.RMSprop(p, lr=0.1, alpha=0.95, momentum=0.3),
            {"learning_rate": 0.1, "beta2": 0.95, "momentum": 0.3, "epsilon": 1e-8, "weight_decay": 0}
            | {"decoupled_weight_decay": 0},
        ),
        (
            lambda p: torch.optim.NAdam(p, lr=0.1, weight_decay=0.1, decoupled_weight_decay=True),
            {"learning_rate": 0.1, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.1}
            | {"decoupled_weight_decay": 1},
        ),
        (
            lambda p: torch.optim.Adagrad(p, lr=0.1),
            {"learning_rate": 0.1, "epsilon": 1e-10, "weight_decay": 0, "decoupled_weight_decay": 0},
        ),
    ],
    ids=["nesterov", "dampened", "adam", "adamw", "rmsprop", "nadam", "adagrad"],
)
def test_hyperparameters_of_every_optimizer(optimizer, expected):
    watched = Hyperparameters([optimizer([parameter()])], {})
    assert {m.observable: m.value for m in changed(watched)} == pytest.approx(expected)
    assert changed(watched) == []


def test_every_optimizer_of_torch_can_be_read():
    for name, kind in vars(torch.optim).items():
        if isinstance(kind, type) and name not in ("Optimizer", "SparseAdam", "LBFGS"):
            optimizer = getattr(torch.optim, name)([parameter()], lr=0.1)
            found = {m.observable for m in changed(Hyperparameters([optimizer], {}))}
            assert {"learning_rate", "weight_decay"} <= found or name == "Rprop", name
            assert all(is_declared(observable) for observable in found)


def test_groups_that_differ_are_told_group_by_group():
    a, b, c = parameter(), parameter(), parameter()
    optimizer = torch.optim.AdamW(
        [{"params": [a, b], "weight_decay": 0.1}, {"params": []}, {"params": [c], "weight_decay": 0.0}], lr=0.01
    )
    watched = Hyperparameters([optimizer], {id(a): "a", id(c): "c"})
    found = {(m.observable, m.scope): (m.value, m.status.value) for m in changed(watched)}
    assert found["weight_decay", ""] == (None, "unsupported")
    assert found["weight_decay", "group:0"] == (0.1, "ok")
    assert found["weight_decay", "group:2"] == (0.0, "ok")
    assert found["learning_rate", ""] == (0.01, "ok")
    assert {scope for _, scope in found} == {"", "group:0", "group:2"}
    assert ("learning_rate", "group:0") not in found
    assert {name: values["weight_decay"] for name, values in watched.by_name.items()} == {"a": 0.1, "c": 0.0}
    optimizer.param_groups[2]["weight_decay"] = 0.1
    found = {(m.observable, m.scope): m.value for m in changed(watched)}
    assert found == {("weight_decay", ""): 0.1, ("weight_decay", "group:2"): 0.1}, "no group keeps an outdated value"
    assert watched.by_name["c"]["weight_decay"] == 0.1


def test_as_many_groups_are_told_as_a_legend_can_name():
    groups = [{"params": [parameter()], "lr": 0.1 * 0.9**k} for k in range(100)]
    watched = Hyperparameters([torch.optim.SGD(groups)], {})
    assert len(changed(watched)) == 64 + 6, "and what is the same in all of them"
    for group in groups:
        group["lr"] *= 0.5
    assert len(changed(watched)) == 64


def test_full_batch_is_looked_at_again():
    watch = FullBatch()
    batch = torch.zeros(4)
    assert watch.observe(batch, 4) is None
    assert watch.observe(torch.zeros(4), 4) == 0.0
    found = [watch.observe(batch, 4) for _ in range(PAUSE + 2)]
    assert found[PAUSE - 1] == 0.0
    assert found[-1] == 1.0
    assert watch.observe(batch, 4, accumulation=2) == 0.0
    del batch


def test_the_context_names_what_laws_ask_for():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2).requires_grad_(False))
    context = describe(model, [torch.optim.Adam(model.parameters(), amsgrad=True)])
    assert context["optimizer"] == "Adam"
    assert context["optimizer_flags"] == ["amsgrad"]
    assert (context["parameters"], context["trainable"]) == (16, 10)
    assert context["batch_coupling"] == "BatchNorm1d"
    assert batch_coupling(model.eval()) == ""
    assert batch_coupling(nn.BatchNorm1d(2, track_running_stats=False).eval()) == "BatchNorm1d"
    assert batch_coupling(nn.LayerNorm(2)) == ""


def test_numbers_are_read_back_in_order():
    found = []
    readback = Readback()
    readback.submit([torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor(5)], found.append)
    readback.submit([], found.append)
    readback.poll()
    readback.drain()
    assert found == [[1.0, 2.0, 3.0, 4.0, 5.0], []]


def test_probes_emit_declared_observables_only():
    for probe in (Sharpness(), GradientNoiseScale(), WeightDynamics(), Vitals()):
        assert all(is_declared(name) for name in probe.observables)
        assert probe.schedule is None


def test_importing_probes_loads_no_framework():
    """Neither torch for the package itself, nor Lightning for the recorder."""
    code = (
        "import sys, learnmech.probes as p; assert 'torch' not in sys.modules; p.Recorder; p.Sharpness;"
        "assert not {'pytorch_lightning', 'lightning', 'torch._dynamo'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
