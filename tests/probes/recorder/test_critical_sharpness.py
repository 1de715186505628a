"""The critical step is where a closed form says that the loss rises; the critical sharpness is 2 over that rate."""

import copy

import pytest
import torch
from torch import nn

from learnmech.probes import Recorder, every, is_probing
from learnmech.probes.critical_sharpness import CriticalSharpness
from learnmech.probes.probe import TrainingView


class Bowl(nn.Module):
    """L(w) = sum h w^2 / 2 + sum q w^4 / 4."""

    def __init__(self, h=(1.0, 3.0, 10.0), q=0.0):
        super().__init__()
        self.h, self.q = torch.tensor(h, dtype=torch.float64), q
        self.w = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))

    def forward(self, x):
        return (self.h * self.w**2 / 2 + self.q * self.w**4 / 4).sum() + 0 * x.sum()


def loss_of(model, batch):
    return model(batch)


def descend(url, probe, steps=6, *, model=None, optimizer=None, loss_fn=loss_of, lr=0.1):
    """Descend; return the weights before each update and after the last."""
    model = model or Bowl()
    optimizer = optimizer(model) if optimizer else torch.optim.SGD(model.parameters(), lr=lr)
    weights, batch = [model.w.detach().clone()], torch.zeros(4, 1)
    with Recorder(model, optimizer, loss_fn, [probe], sink=url) as recorder:
        for _ in range(steps):
            optimizer.zero_grad()
            model(batch).backward()
            optimizer.step()
            recorder.after_step(batch)
            weights.append(model.w.detach().clone())
    return weights


@pytest.mark.parametrize("kind", ["SGD", "momentum", "AdamW"])
def test_on_a_quadratic_it_is_twice_slope_over_curvature(spool, kind):
    make = {
        "SGD": lambda m: torch.optim.SGD(m.parameters(), lr=0.05),
        "momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.02, momentum=0.5),
        "AdamW": lambda m: torch.optim.AdamW(m.parameters(), lr=0.05, weight_decay=0.1),
    }[kind]
    rate = {"SGD": 0.05, "momentum": 0.02, "AdamW": 0.05}[kind]
    weights = descend(spool.url, CriticalSharpness(every(1)), optimizer=make)
    run, h = spool(), torch.tensor([1.0, 3.0, 10.0]).double()
    for step in range(6):
        w, s = weights[step], weights[step + 1] - weights[step]
        expected = float(-2 * (h * w * s).sum() / (h * s * s).sum())
        (_, found), (_, sharp) = run.all("critical_step")[step], run.all("critical_sharpness")[step]
        assert found.status == sharp.status == "ok"
        assert abs(found.value - expected) <= found.stderr
        assert found.value == pytest.approx(expected, rel=0.06)
        assert found.stderr <= 0.05 * found.value * 1.01
        assert sharp.value == pytest.approx(2 / (rate * found.value))
        assert sharp.stderr / sharp.value == pytest.approx(found.stderr / found.value)
        assert int(found.method.removesuffix("_forwards")) <= 6
    if kind == "SGD":
        g = h * weights[0]
        assert run.values("critical_sharpness")[0] == pytest.approx(float((h * g * g).sum() / (g * g).sum()), rel=0.06)


def test_beyond_a_quadratic_it_is_the_root_along_the_update(spool):
    """The root is found here by bisection of the closed form."""
    weights = descend(spool.url, CriticalSharpness(every(1)), model=Bowl(q=4.0), lr=0.02)
    run, h = spool(), torch.tensor([1.0, 3.0, 10.0]).double()

    def loss(w):
        return float((h * w**2 / 2 + w**4).sum())

    for step in range(6):
        w, s = weights[step], weights[step + 1] - weights[step]
        low, high = 1e-3, 1e-3
        while loss(w + high * s) <= loss(w):
            low, high = high, 2 * high
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if loss(w + middle * s) <= loss(w) else (low, middle)
        (_, found) = run.all("critical_step")[step]
        assert abs(found.value - low) <= found.stderr
        assert found.stderr < 0.11 * found.value


def test_tol_and_forwards_are_kept(spool):
    descend(spool.url, CriticalSharpness(every(1), tol=1e-3, forwards=5), steps=3, model=Bowl(q=4.0), lr=0.02)
    found = [m for _, m in spool().all("critical_step")]
    assert {m.method for m in found} == {"5_forwards"}
    assert {m.status for m in found} == {"not_converged"}
    assert "after 5 forward passes" in found[0].reason


def test_the_number_of_forwards_is_the_one_that_is_said(spool):
    """Counted in the loss itself; every tenth measurement looks at the rounding with five more."""
    calls = []

    def loss_fn(model, batch):
        calls.append(is_probing())
        return model(batch)

    descend(spool.url, CriticalSharpness(every(1)), steps=8, loss_fn=loss_fn)
    said = sum(int(m.method.removesuffix("_forwards")) for _, m in spool().all("critical_step"))
    replays_before_trust = 0 if len(calls) == said + 5 else len(calls) - said - 5
    assert 0 <= replays_before_trust <= 4  # the recorder's own look at whether the loss repeats


def test_an_uphill_update_gives_an_upper_bound(spool):
    make = lambda m: torch.optim.SGD(m.parameters(), lr=0.01, maximize=True)
    descend(spool.url, CriticalSharpness(every(1)), steps=2, optimizer=make)
    (_, step), *_ = spool().all("critical_step")
    (_, sharp), *_ = spool().all("critical_sharpness")
    assert step.status == sharp.status == "undetermined"
    assert 0 < step.value < 0.01
    assert sharp.value == pytest.approx(2 / (0.01 * step.value))
    assert "does not point downhill" in step.reason


def test_a_loss_that_never_rises_gives_a_lower_bound(spool):
    class Slope(Bowl):
        def forward(self, x):
            return self.w.sum() + 0 * x.sum()

    descend(spool.url, CriticalSharpness(every(1)), steps=1, model=Slope())
    ((_, step),) = spool().all("critical_step")
    assert step.status == "undetermined"
    assert step.value > 100
    assert "at least" in step.reason


def test_nan_beyond_the_edge_counts_as_a_rise(spool):
    class Cliff(Bowl):
        def forward(self, x):
            return -(3.0 + self.w[0]).log() + 0 * x.sum() + 0 * self.w.sum()  # falls for all w > -3, NaN below

    model = Cliff()
    make = lambda m: torch.optim.SGD(m.parameters(), lr=1.0)

    def loss_fn(model, batch):
        loss = model(batch)
        return loss if float(model.w.detach()[0]) < 5 else loss * float("nan")

    weights = descend(spool.url, CriticalSharpness(every(1)), steps=1, model=model, optimizer=make, loss_fn=loss_fn)
    expected = (5.0 - 1.0) / float(weights[1][0] - weights[0][0])
    ((_, step),) = spool().all("critical_step")
    assert abs(step.value - expected) <= step.stderr
    assert step.stderr < 0.25 * step.value


def test_with_several_learning_rates_there_is_no_critical_sharpness(spool):
    class Two(Bowl):
        def __init__(self):
            super().__init__()
            self.v = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))

        def forward(self, x):
            return super().forward(x) + self.v.square().sum()

    make = lambda m: torch.optim.SGD([{"params": [m.w], "lr": 0.05}, {"params": [m.v], "lr": 0.1}])
    descend(spool.url, CriticalSharpness(every(1)), steps=3, model=Two(), optimizer=make)
    run = spool()
    assert [m.status for _, m in run.all("critical_step")] == ["ok"] * 3
    for _, m in run.all("critical_sharpness"):
        assert (m.value, m.status) == (None, "unsupported")
        assert "differs between parameter groups" in m.reason
    assert not run.of_kind("probe_disabled")


def test_the_learning_rate_is_that_of_the_update_not_of_the_next(quartic, spool):
    def halving(optimizer):
        return torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)

    quartic.descend([CriticalSharpness(every(1))], spool.url, steps=3, lr=0.2, scheduler=halving)
    run = spool()
    for step in range(3):
        c, sharp = run.values("critical_step")[step], run.values("critical_sharpness")[step]
        assert sharp * c == pytest.approx(2 / (0.2 * 0.5**step))


def test_a_learning_rate_on_a_device_is_not_waited_for_before_the_update(spool):
    """On the meta device any way to read it raises; what was in force is kept, whatever a scheduler writes after."""
    model, probe = Bowl(), CriticalSharpness(every(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rate = torch.tensor(0.1)
    optimizer.param_groups[0]["lr"] = torch.empty((), device="meta")
    hold = lambda: {name: p.detach().clone() for name, p in model.named_parameters()}
    probe.prepare(TrainingView(0, model, [optimizer], dict(model.named_parameters()), None, None, hold))
    optimizer.param_groups[0]["lr"] = rate
    descend(spool.url, CriticalSharpness(every(1)), steps=2, model=model, optimizer=lambda model: optimizer)
    run = spool()
    for step in range(2):
        c, sharp = run.values("critical_step")[step], run.values("critical_sharpness")[step]
        assert sharp * c == pytest.approx(2 / float(rate))


def test_it_can_be_copied_and_pickled_in_the_middle_of_a_step(picklable):
    model, probe = Bowl(), CriticalSharpness(every(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.step = lambda: None  # as schedulers leave it: it cannot be pickled
    hold = lambda: {name: p.detach().clone() for name, p in model.named_parameters()}
    probe.prepare(TrainingView(0, model, [optimizer], dict(model.named_parameters()), None, None, hold))
    for twin in (picklable(probe), copy.deepcopy(probe)):
        assert twin.tol == probe.tol
        assert not twin._rules.values
        assert not twin._rules.read([])
    assert probe._rules.read([])["w"].rate == 0.1


def test_half_precision_weights_are_not_measured(spool):
    model = nn.Linear(3, 1).to(torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loss_fn(model, x):
        return model(x).float().square().mean()

    with Recorder(model, optimizer, loss_fn, [CriticalSharpness(every(1))], sink=spool.url) as recorder:
        x = torch.ones(4, 3, dtype=torch.bfloat16)
        loss_fn(model, x).backward()
        optimizer.step()
        recorder.after_step(x)
    ((_, m),) = spool().all("critical_step")
    assert (m.value, m.status) == (None, "unsupported")
    assert "half precision" in m.reason


@pytest.mark.parametrize("settings", [{"tol": 0.0}, {"tol": 1.0}, {"forwards": 4}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match="expected"):
        CriticalSharpness(**settings)


def test_an_update_too_small_to_tell_is_forgotten(spool):
    """With next to no learning rate nothing rises however far one looks; afterwards the crossing is found again."""
    model = nn.Linear(4, 1, bias=False).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    batch = (torch.eye(4, dtype=torch.float64), torch.zeros(4, 1, dtype=torch.float64))

    def loss_fn(model, batch):
        return (model(batch[0]) - batch[1]).square().mean()

    with Recorder(model, optimizer, loss_fn, [CriticalSharpness(every(1))], sink=spool.url) as recorder:
        for step in range(12):
            optimizer.param_groups[0]["lr"] = 1e-9 if step < 5 else 0.1
            optimizer.zero_grad()
            loss = loss_fn(model, batch)
            loss.backward()
            optimizer.step()
            recorder.after_step(batch, loss)
    found = dict(spool().all("critical_step"))
    for step in range(8, 12):  # L = |w|^2 / 4, so eta_c = 2 / (1/2)
        assert found[step].status == "ok", found[step].reason
        assert found[step].value == pytest.approx(4 / 0.1, rel=0.06)
