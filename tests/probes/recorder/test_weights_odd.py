"""Whatever weights and gradients are: training goes on bit for bit, nothing fails, what cannot be had says why."""

import math
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from learnmech.observables import Status
from learnmech.probes import Recorder, WeightDynamics, every
from learnmech.probes.symmetries import Symmetries

STEPS = 9


class Odd(nn.Module):
    """A network with a parameter of its own of every odd kind."""

    def __init__(self, extra, dtype):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)
        self.to(dtype)
        if extra is not None:
            self.extra = nn.Parameter(extra)

    def forward(self, x):
        y = self.second(self.first(x).relu())
        if not hasattr(self, "extra"):
            return y
        return y + self.extra.abs().sum().to(y.dtype) if self.extra.is_complex() else y + self.extra.sum().to(y.dtype)


def gradients_of(value):
    def change(model, step):
        if step % 3 == 1:
            for p in model.parameters():
                p.grad = torch.full_like(p, value)

    return change


def of_both_signs(model, step):
    """<w, g> is infinite in two layers, and their sum is nothing."""
    for layer, sign in ((model.first, 1.0), (model.second, -1.0)):
        layer.weight.grad[0, 0] = sign * math.inf * float(layer.weight[0, 0].detach().sign())


def never(model, step):
    model.first.weight.grad = model.first.bias.grad = None


def grows(model, step):
    if step == 4:
        model.register_parameter("late", nn.Parameter(torch.randn(3, 3)))
        model.late.grad = torch.randn(3, 3, generator=torch.Generator().manual_seed(1))


def converted(model, step):
    if step == 4:
        model.double()


CASES = {
    "plain": {},
    "complex": {"extra": torch.randn(2, 3, dtype=torch.complex64)},
    "0-d": {"extra": torch.tensor(0.5)},
    "empty": {"extra": torch.zeros(0, 3)},
    "zeros": {"extra": torch.zeros(4, 4)},
    "bfloat16": {"dtype": torch.bfloat16},
    "float16": {"dtype": torch.float16},
    "float64": {"dtype": torch.float64},
    "no gradient": {"change": never},
    "zero gradient": {"change": gradients_of(0.0)},
    "gradient not a number": {"change": gradients_of(math.nan)},
    "infinite gradient": {"change": gradients_of(math.inf)},
    "infinities of both signs": {"change": of_both_signs},
    "parameter added": {"change": grows},
    "converted in mid-run": {"change": converted},
}


def train(case, spool=None, *, sgd=True):
    """Train, with both probes or with none; return the end of it."""
    settings = {"extra": None, "dtype": torch.float32, "change": lambda model, step: None} | CASES[case]
    model = Odd(None if settings["extra"] is None else settings["extra"].clone(), settings["dtype"])
    make = torch.optim.SGD if sgd else torch.optim.AdamW
    optimizer = make(model.parameters(), lr=0.05, weight_decay=0.01)
    loss_fn = lambda model, x: model(x).float().square().mean()
    probes = [WeightDynamics(every(1), per_parameter=True, parameter_groups=True), Symmetries(every(1))]
    place = nullcontext() if spool is None else Recorder(model, optimizer, loss_fn, probes, sink=spool.url, budget=0)
    with place as recorder:
        for step in range(STEPS):
            x = torch.randn(8, 4).to(model.first.weight.dtype)
            optimizer.zero_grad()
            loss = loss_fn(model, x)
            loss.backward()
            settings["change"](model, step)
            if hasattr(model, "late") and len(optimizer.param_groups) == 1:
                optimizer.add_param_group({"params": [model.late], "lr": 0.1})
            if recorder is not None and step % 2:
                recorder.after_backward(x)
            optimizer.step()
            if recorder is not None:
                recorder.after_step(x, loss)
    return model, optimizer


@pytest.mark.parametrize(
    ("case", "sgd"),
    # AdamW's state does not follow a conversion
    [(case, sgd) for case in CASES for sgd in (True, False) if sgd or case != "converted in mid-run"],
)
def test_training_goes_on_bit_for_bit(case, sgd, spool, training_state, digest):
    without = training_state(*_listed(train(case, sgd=sgd)))
    measured = training_state(*_listed(train(case, spool, sgd=sgd)))
    assert digest(measured) == digest(without)
    run = spool()
    assert not run.of_kind("probe_failed") + run.of_kind("probe_disabled") + run.of_kind("monitor_failed")
    numbers = [m for frame in run.frames for m in frame.measurements]
    assert sorted(run.values("weight_norm")) == list(range(STEPS)), "measured at every step"
    for m in numbers:
        if m.value is None:
            assert m.status is not Status.OK, m
            assert m.reason or m.status is Status.NON_FINITE, m
        elif not math.isfinite(m.value):
            assert m.status is not Status.OK, m


def _listed(ended):
    return ended[0], [ended[1]]


def test_infinities_of_both_signs_are_no_number(spool):
    train("infinities of both signs", spool)
    run = spool()
    ((_, first), *_) = run.all("fluctuation_dissipation")
    assert (first.value, first.status) == (None, "non_finite")
    assert {m.status for step, m in run.all("grad_norm", "type:Linear") if step == 0} == {"non_finite"}


def test_a_loss_scale_that_has_sunk_to_zero(spool):
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    optimizer.grad_scale = torch.tensor(0.0)
    loss_fn = lambda model, x: model(x).square().mean()
    with Recorder(model, optimizer, loss_fn, [WeightDynamics(every(1))], sink=spool.url, budget=0) as recorder:
        x = torch.randn(8, 4)
        loss_fn(model, x).backward()
        recorder.after_backward(x)
        del optimizer.grad_scale
        optimizer.step()
        recorder.after_step(x)
    run = spool()
    ((_, slope),) = run.all("grad_norm", "weight")
    assert slope.status == "non_finite"
    assert run.values("weight_norm")[0] > 0


def test_half_precision_weights_are_measured_as_they_are(spool):
    """Norms against float64 arithmetic on the rounded weights."""
    model, _ = train("bfloat16", spool)
    run = spool()
    last = run.values("weight_norm")[STEPS - 1] ** 2 + run.values("update_norm")[STEPS - 1] ** 2
    now = sum(float(p.detach().double().square().sum()) for p in model.parameters())
    assert now == pytest.approx(last, rel=0.2)
    names = {m.scope for m in (m for frame in run.frames for m in frame.measurements)}
    assert {"first.weight", "second.bias"} <= names


def test_every_scope_says_its_own_rates_where_groups_differ(spool):
    """Of 40 layers, more than were once told one by one, every second has another rate."""
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(40)))
    groups = [
        {"params": [p for k in range(i, 40, 2) for p in model[k].parameters()], "lr": 0.01 * (i + 1)} for i in (0, 1)
    ]
    optimizer = torch.optim.SGD(groups)
    loss_fn = lambda model, x: model(x).square().mean()
    probes = [WeightDynamics(every(1), per_parameter=True, parameter_groups=True)]
    with Recorder(model, optimizer, loss_fn, probes, sink=spool.url, budget=0) as recorder:
        for step in range(4):
            if step == 2:
                optimizer.param_groups[1]["lr"] = 0.01
            x = torch.randn(4, 3)
            loss_fn(model, x).backward()
            optimizer.step()
            recorder.after_step(x)
    run = spool()
    for k in range(40):
        own = {0: 0.02, 2: 0.01} if k % 2 else {0: 0.01}
        assert run.values("learning_rate", f"{k}.weight") == run.values("learning_rate", str(k)) == own
    assert run.values("learning_rate", "group:1") == {0: 0.02, 2: 0.01}
    assert run.values("learning_rate", "group:0") == {0: 0.01}
    assert [(s, m.value) for s, m in run.all("learning_rate", "type:Linear")] == [(0, None), (2, 0.01)]
    assert [(s, m.value) for s, m in run.all("learning_rate")] == [(0, None), (2, 0.01)]
