"""Where the very objects are there that were there before nothing is read; whatever has changed is."""

import copy
import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from learnmech.probes import Recorder, WeightDynamics, every
from learnmech.probes.hyperparameters import Hyperparameters
from learnmech.probes.readback import Readback
from learnmech.probes.symmetries import Symmetries


class Betas(list):
    """A list of another class, as configurations keep them."""


class Watched:
    """Optimizers of a parameter each, watched as the engine does it, after two looks at them."""

    def __init__(self, kind=torch.optim.AdamW, **settings):
        self.parameters = [nn.Parameter(torch.ones(3)) for _ in range(3)]
        self.optimizers = [kind([self.parameters[0]], lr=0.1)]
        self.group = self.optimizers[0].param_groups[0]
        self.group.update(settings)
        names = {id(p): f"p{i}" for i, p in enumerate(self.parameters)}
        self.hyperparameters = Hyperparameters(self.optimizers, names)
        self.look()
        self.look()

    def look(self):
        """Return what was recorded, and None if nothing was read."""
        found = []
        self.hyperparameters.read(Readback().submit, found.append)
        if not found:
            return None
        return {m.observable if not m.scope else f"{m.scope} {m.observable}": m.value for m in found[0]}


def test_nothing_is_read_where_nothing_was_touched():
    assert Watched().look() is None
    assert Watched(lr=np.float32(0.5)).look() is None


@pytest.mark.parametrize(
    ("settings", "change", "recorded"),
    [
        ({}, lambda w: w.group.update(lr=0.2), {"learning_rate": 0.2}),
        ({}, lambda w: w.group.update(lr=float("0.1")), {}),
        ({"lr": 1}, lambda w: w.group.update(lr=True), None),
        ({}, lambda w: w.group.update(lr=np.float64(0.2)), {"learning_rate": 0.2}),
        ({}, lambda w: w.group.update(lr=Fraction(1, 4)), {"learning_rate": 0.25}),
        ({}, lambda w: w.group.update(lr=torch.tensor(0.25)), {"learning_rate": 0.25}),
        ({}, lambda w: w.group.update(betas=(0.9, 0.5)), {"beta2": 0.5}),
        ({"betas": [0.9, 0.99]}, lambda w: w.group["betas"].__setitem__(1, 0.5), {"beta2": 0.5}),
        ({"betas": Betas([0.9, 0.99])}, lambda w: w.group["betas"].__setitem__(0, 0.5), {"beta1": 0.5}),
        ({"betas": (torch.tensor(0.5), 0.9)}, lambda w: w.group["betas"][0].fill_(0.25), {"beta1": 0.25}),
        ({"lr": torch.tensor(0.5)}, lambda w: w.group["lr"].fill_(0.25), {"learning_rate": 0.25}),
        ({"lr": torch.tensor(0.5)}, lambda w: w.group.update(lr=0.5), {}),
        ({}, lambda w: w.group.update(nesterov=True), {"nesterov": 1.0}),
        ({}, lambda w: w.group["params"].append(w.parameters[1]), {}),
        (
            {},
            lambda w: w.optimizers[0].add_param_group({"params": [w.parameters[1]], "lr": 0.1, "eps": 0.5}),
            {"epsilon": None},
        ),
    ],
    ids=[
        "number", "equal number", "equal bool", "numpy", "fraction", "tensor for number", "betas replaced",
        "betas written to", "list of another class", "tensor in betas", "tensor written to", "number for tensor",
        "setting added", "parameter added", "group added",
    ],
)  # fmt: skip
def test_what_was_touched_is_read(settings, change, recorded):
    watched = Watched(**settings)
    change(watched)
    assert watched.look() == recorded


def test_the_new_parameter_is_known_by_its_name():
    watched = Watched()
    assert set(watched.hyperparameters.by_name) == {"p0"}
    watched.group["params"].append(watched.parameters[1])
    watched.look()
    assert set(watched.hyperparameters.by_name) == {"p0", "p1"}


def test_a_state_that_was_loaded():
    watched = Watched()
    state = copy.deepcopy(watched.optimizers[0].state_dict())
    state["param_groups"][0]["weight_decay"] = 0.5
    watched.optimizers[0].load_state_dict(state)
    assert watched.look() == {"weight_decay": 0.5}
    assert watched.look() is None


def test_an_optimizer_replaced_by_one_of_another_kind():
    """Its groups have the same numbers, and mean something else by them."""
    watched = Watched(torch.optim.Adam, weight_decay=0.5)
    assert watched.hyperparameters.by_name["p0"]["decoupled_weight_decay"] == 0.0
    watched.optimizers[0] = torch.optim.AdamW([watched.parameters[0]], lr=0.1, weight_decay=0.5)
    assert watched.look() == {"decoupled_weight_decay": 1.0}


def test_a_tensor_is_looked_at_every_time_until_it_is_gone():
    watched = Watched(lr=torch.tensor(0.5))
    for rate in (0.25, 0.125):
        watched.group["lr"].fill_(rate)
        assert watched.look() == {"learning_rate": rate}
        assert not watched.look()
    watched.group["lr"] = 0.125
    assert not watched.look()
    assert watched.look() is None


def test_a_rate_that_is_a_number_of_numpy(spool):
    """It is recorded, and no probe fails for it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=np.float32(0.1), momentum=0.9)
    loss_fn = lambda model, x: model(x).tanh().square().mean()
    probes = [Symmetries(every(1)), WeightDynamics(every(1))]
    with Recorder(model, optimizer, loss_fn, probes, sink=spool.url, budget=0, strict=True) as recorder:
        for step in range(7):
            optimizer.param_groups[0]["lr"] = np.float32(0.1 / (step + 1))
            x = torch.randn(8, 4)
            optimizer.zero_grad()
            loss_fn(model, x).backward()
            optimizer.step()
            recorder.after_step(x)
    run = spool()
    assert run.values("learning_rate") == {step: float(np.float32(0.1 / (step + 1))) for step in range(7)}
    assert set(run.values("charge_drift_predicted", "symmetry:rescale")) == {5, 6}
    assert set(run.values("fluctuation_dissipation")) == set(range(7))


def test_a_state_that_is_loaded_has_its_keys_in_another_order():
    watched = Watched(torch.optim.SGD, momentum=0.9)
    watched.optimizers[0].load_state_dict(watched.optimizers[0].state_dict())
    assert not watched.look()
    group = watched.optimizers[0].param_groups[0]
    group["momentum"] = 0.95
    assert watched.look() == {"momentum": 0.95}
    group["lr"] = 0.2
    assert watched.look() == {"learning_rate": 0.2}
    known = watched.hyperparameters.by_name["p0"]
    assert (known["learning_rate"], known["momentum"]) == (0.2, 0.95)


def test_updates_made_past_the_optimizers_hook_are_seen_where_a_batch_is_told_of(spool):
    """Somebody has put another `step` on the optimizer: its hooks are not called."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss_fn = lambda model, x: model(x).square().mean()
    optimizer.step = lambda: None
    with Recorder(model, optimizer, loss_fn, [WeightDynamics(every(1000))], sink=spool.url, budget=0) as recorder:
        for step in range(4):
            optimizer.param_groups[0]["lr"] = 0.1 * (step + 1)
            x = torch.randn(8, 4)
            optimizer.zero_grad()
            loss = loss_fn(model, x)
            loss.backward()
            recorder.after_backward(x)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.sub_(optimizer.param_groups[0]["lr"] * parameter.grad)
            recorder.after_step(x, loss)
    assert spool().values("learning_rate") == pytest.approx({step: 0.1 * (step + 1) for step in range(4)})


@pytest.mark.parametrize("seed", range(20))
def test_what_is_known_is_what_is_in_force_whatever_was_changed(seed):
    """A thousand random changes of two groups; schedules, which change rates alone, take a shorter way."""
    draw = random.Random(seed)
    watched = Watched(torch.optim.SGD)
    optimizer = watched.optimizers[0]
    optimizer.add_param_group({"params": [watched.parameters[1]], "lr": 0.1})
    groups, known = optimizer.param_groups, {"learning_rate": 0.1, "momentum": 0.0}

    def together(rate):
        for group in groups:
            group["lr"] = rate

    for _ in range(300):
        change = draw.randrange(7)
        if change < 4:
            together(draw.choice([0.1, 0.2, 0.3]))
        elif change == 4:
            draw.choice(groups)["lr"] = draw.choice([0.1, 0.2, torch.tensor(0.5)])
        elif change == 5:
            together(0.4)
            draw.choice(groups)["momentum"] = draw.choice([0.0, 0.9])
        else:
            groups[0]["lr"], groups[1]["lr"] = 0.25, np.float64(0.25)
        known |= {name: value for name, value in (watched.look() or {}).items() if "group" not in name}
        for key, name in (("lr", "learning_rate"), ("momentum", "momentum")):
            now = {float(group[key]) for group in groups}
            assert known[name] == (now.pop() if len(now) == 1 else None)
        for index, group in enumerate(groups):
            assert watched.hyperparameters.by_name[f"p{index}"]["learning_rate"] == float(group["lr"])
