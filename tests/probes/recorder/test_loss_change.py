"""The change of the loss by an update, and its quadratic model, are those of closed forms and of differences.

Oracles: the quartic L = sum w^4 / 12, whose G = w^3 / 3 and H = diag(w^2) are written down here; linear regression,
where the model is exact; and on a network in float64 differences of first derivatives of another code path.
"""

import copy
import math
import pickle
import types

import pytest
import torch
from torch import nn

from learnmech.probes import Recorder, every, is_probing
from learnmech.probes.batch_sharpness import BatchSharpness
from learnmech.probes.critical_sharpness import CriticalSharpness
from learnmech.probes.hessian_eigenvalues import HessianEigenvalues
from learnmech.probes.loss_change import LossChange

ALL = ("loss_change", "loss_change_linear", "loss_change_predicted", "update_sharpness", "curvature_share")


def train(model, optimizer, loss_fn, batches, probes, url, *, after_backward=True, **settings):
    """Train on batches; return the weights before each update and after the last."""
    seen = [copy.deepcopy(model.state_dict())]
    with Recorder(model, optimizer, loss_fn, probes, sink=url, **settings) as recorder:
        for batch in batches:
            optimizer.zero_grad()
            loss = loss_fn(model, batch)
            loss.backward()
            if after_backward:
                recorder.after_backward(batch)
            optimizer.step()
            recorder.after_step(batch, loss)
            seen.append(copy.deepcopy(model.state_dict()))
    return seen


@pytest.mark.parametrize("after_backward", [True, False])
def test_every_number_is_its_closed_form_at_its_step(quartic, spool, after_backward):
    weights = quartic.descend([LossChange(every(2))], spool.url, steps=6, lr=0.3, after_backward=after_backward)
    run = spool()
    assert list(run.values("loss_change")) == [0, 2, 4]
    for step in (0, 2, 4):
        w, s = weights[step], weights[step + 1] - weights[step]
        linear, curvature = float((w**3 / 3 * s).sum()), float((w**2 * s**2).sum())
        expected = {
            "loss_change": float(((w + s) ** 4 - w**4).sum() / 12),
            "loss_change_linear": linear,
            "loss_change_predicted": linear + curvature / 2,
            "update_sharpness": curvature / float(s @ s),
            "curvature_share": curvature / (2 * abs(linear)),
        }
        assert {name: run.values(name)[step] for name in ALL} == pytest.approx(expected, rel=1e-9)
        remainder = float((w * s**3 / 3 + s**4 / 12).sum())
        found = run.values("loss_change")[step] - run.values("loss_change_predicted")[step]
        assert found == pytest.approx(remainder, rel=1e-6)
        assert abs(remainder) > 1e-4, "the model would be exact, and the test blind"
    for name in ALL:
        assert all(m.status == "ok" and 0 < m.stderr < 1e-12 for _, m in run.all(name))
    assert {m.method for _, m in run.all("loss_change_predicted")} == {"double_backward"}


@pytest.mark.parametrize("optimizer", ["SGD", "momentum", "AdamW"])
def test_on_linear_regression_the_prediction_is_exact_for_any_optimizer(mean_square, spool, optimizer):
    torch.manual_seed(0)
    model = nn.Linear(6, 2).double()
    made = {
        "SGD": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1),
        "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
        "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5),
    }[optimizer](model.parameters())
    data = [(torch.randn(8, 6).double(), torch.randn(8, 2).double()) for _ in range(6)]
    weights = train(model, made, mean_square, data, [LossChange(every(1))], spool.url)
    run = spool()
    for step, (x, y) in enumerate(data):
        losses = [float((x @ w["weight"].T + w["bias"] - y).square().mean()) for w in weights[step : step + 2]]
        assert run.values("loss_change")[step] == pytest.approx(losses[1] - losses[0], rel=1e-10, abs=1e-14)
        assert run.values("loss_change_predicted")[step] == pytest.approx(losses[1] - losses[0], rel=1e-9, abs=1e-13)


def test_on_a_network_it_is_the_second_difference_at_the_weights_before(cross_entropy, spool):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.5)
    data = [(torch.randn(8, 4).double(), torch.randint(0, 3, (8,))) for _ in range(4)]
    weights = train(model, optimizer, cross_entropy, data, [LossChange(every(1))], spool.url)
    run, names = spool(), [name for name, _ in model.named_parameters()]
    for step, batch in enumerate(data):
        w, after = (torch.cat([weights[at][name].flatten() for name in names]) for at in (step, step + 1))
        s = after - w

        def loss(flat, batch=batch):
            shaped = dict(zip(names, torch.split(flat, [p.numel() for p in model.parameters()]), strict=True))
            shaped = {name: shaped[name].view_as(p) for name, p in model.named_parameters()}
            return nn.functional.cross_entropy(torch.func.functional_call(model, shaped, (batch[0],)), batch[1])

        def gradient(flat, loss=loss):
            flat = flat.clone().requires_grad_()
            return torch.autograd.grad(loss(flat), flat)[0]

        linear, h = float(gradient(w) @ s), 1e-5
        curvature = float((gradient(w + h * s) - gradient(w - h * s)) @ s) / (2 * h)
        assert run.values("loss_change")[step] == pytest.approx(float(loss(after) - loss(w)), rel=1e-9)
        assert run.values("loss_change_linear")[step] == pytest.approx(linear, rel=1e-9)
        assert run.values("loss_change_predicted")[step] == pytest.approx(linear + curvature / 2, rel=1e-8)
        assert run.values("update_sharpness")[step] == pytest.approx(curvature / float(s @ s), rel=1e-7)
        assert curvature > 0.01 * abs(linear), "it would not matter"


def test_the_error_bar_of_the_change_holds_in_float32(cross_entropy, spool):
    """Small updates of a float32 network, where half of the digits cancel, against the same weights in float64."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    data = [(torch.randn(64, 20), torch.randint(0, 5, (64,))) for _ in range(30)]
    weights = train(model, optimizer, cross_entropy, data, [LossChange(every(1))], spool.url)
    twin, ratios = copy.deepcopy(model).double(), []
    for step, m in spool().all("loss_change"):
        exact = []
        for at in (step, step + 1):
            twin.load_state_dict(weights[at])
            exact.append(float(cross_entropy(twin, (data[step][0].double(), data[step][1])).detach()))
        ratios.append((m.value - (exact[1] - exact[0])) / m.stderr)
        assert m.stderr > 1e-4 * abs(m.value), "nothing cancels: the test is blind"
    assert 0.2 < math.sqrt(sum(r * r for r in ratios) / len(ratios)) < 2.5


def test_both_losses_have_the_same_masks_and_statistics(cross_entropy, spool):
    """Other masks would change the loss by tenths; the update changes it by thousandths."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 5)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    data = [(torch.randn(16, 10).double(), torch.randint(0, 5, (16,))) for _ in range(10)]
    train(model, optimizer, cross_entropy, data, [LossChange(every(1))], spool.url)
    run = spool()
    assert len(run.values("loss_change")) == 10
    for step, change in run.values("loss_change").items():
        assert abs(change) < 0.01
        assert run.values("loss_change_predicted")[step] == pytest.approx(change, rel=0.02, abs=1e-6)


def test_without_second_derivatives_it_still_has_the_change_itself(quartic, spool):
    """By differences the numbers agree to their own error; nothing is refused."""
    weights = quartic.descend([LossChange(every(1), method="finite_differences")], spool.url, steps=3, lr=0.3)
    run = spool()
    for step in range(3):
        w, s = weights[step], weights[step + 1] - weights[step]
        exact = float((w**2 * s**2).sum() / (s @ s))
        ((_, m),) = [entry for entry in run.all("update_sharpness") if entry[0] == step]
        assert m.method == "finite_differences"
        assert abs(m.value - exact) <= m.stderr + 1e-6 * exact
        assert run.values("loss_change")[step] == pytest.approx(float(((w + s) ** 4 - w**4).sum() / 12), rel=1e-9)


class Once(torch.autograd.Function):
    """The square, with a derivative that cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


@pytest.mark.parametrize("make", [LossChange, BatchSharpness, HessianEigenvalues])
def test_where_double_backward_fails_differences_are_taken(make, quartic, spool):
    """L = (w^2)^2 / 12 through a function that differentiates once: H = diag(w^2) still."""

    def loss_fn(model, batch):
        return Once.apply(model.w).square().sum() / 12 + 0 * batch.sum()

    model = quartic.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    weights = train(model, optimizer, loss_fn, [torch.zeros(4, 1)] * 3, [make(every(1))], spool.url)
    run = spool()
    for step in range(3):
        w = weights[step]["w"]
        s, g = weights[step + 1]["w"] - w, w**3 / 3
        name, expected = {
            LossChange: ("update_sharpness", float((w**2 * s**2).sum() / (s @ s))),
            BatchSharpness: ("batch_curvature", float((w**2 * g**2).sum())),
            HessianEigenvalues: ("hessian_eigenvalue", float((w**2).max())),
        }[make]
        ((_, m),) = [entry for entry in run.all(name, "1" if "eigen" in name else "") if entry[0] == step]
        assert m.method.startswith("finite_differences")
        assert m.value == pytest.approx(expected, rel=1e-5)
    assert "second derivative" in run.of_kind("probe_notice")[0].message


@pytest.mark.parametrize("told", [True, False], ids=["after_backward", "accumulation="])
def test_of_an_accumulated_update_only_the_last_micro_batch_is_measured_and_that_is_said(mean_square, spool, told):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = [(torch.randn(4, 3), torch.randn(4, 1)) for _ in range(3)]
    settings = {} if told else {"accumulation": 3}
    with Recorder(model, optimizer, mean_square, [LossChange(every(1))], sink=spool.url, **settings) as recorder:
        for batch in data:
            (mean_square(model, batch) / 3).backward()
            if told:
                recorder.after_backward(batch)
        optimizer.step()
        recorder.after_step(data[-1])
    ((_, m),) = spool().all("loss_change_predicted")
    assert m.method == "double_backward_on_4_of_12_examples"
    assert m.status == "ok"


def test_an_update_that_goes_uphill_on_its_batch_has_no_share(quartic, spool):
    model = quartic.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, maximize=True)
    train(model, optimizer, quartic.loss, [torch.zeros(4, 1)] * 2, [LossChange(every(1))], spool.url)
    run = spool()
    assert run.values("loss_change")[0] > 0
    assert [m.status for _, m in run.all("curvature_share")] == ["undetermined"] * 2
    assert [m.status for _, m in run.all("update_sharpness")] == ["ok"] * 2


def test_no_update_is_said(quartic, spool):
    quartic.descend([LossChange(every(1)), CriticalSharpness(every(1))], spool.url, steps=2, lr=0.0)
    run = spool()
    for name in (*ALL, "critical_step", "critical_sharpness"):
        assert [(m.value, m.status) for _, m in run.all(name)] == [(None, "undetermined")] * 2
    assert run.all("loss_change")[0][1].reason == "the update is zero: the weights have not moved"


def test_an_update_into_infinity_leaves_the_model_of_it(quartic, spool):
    """w^4 overflows after the step; gradient and curvature at the weights before it are fine."""
    quartic.descend([LossChange(every(1))], spool.url, steps=1, lr=1e100)
    run = spool()
    ((_, change),) = run.all("loss_change")
    assert (change.value, change.status) == (None, "non_finite")
    assert "after the update" in change.reason
    assert run.all("loss_change_linear")[0][1].status == "ok"


# --- what holds for every probe of updates ---------------------------------------------------------------------------

PROBES = [LossChange, CriticalSharpness, BatchSharpness, HessianEigenvalues]


def network():
    torch.manual_seed(3)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(36, 3)]
    return nn.Sequential(*layers)


def watched(probe, loss_fn, digest, training_state, url):
    """Train; hash everything after each backward pass and each step."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    recorder = Recorder(model, optimizer, loss_fn, [probe], sink=url).__enter__() if probe else None
    seen = []
    for _ in range(5):
        batch = (torch.randn(8, 1, 5, 5), torch.randint(0, 3, (8,)))
        optimizer.zero_grad()
        loss = loss_fn(model, batch)
        loss.backward()
        if recorder:
            recorder.after_backward(batch)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        if recorder:
            recorder.after_step(batch, loss)
        seen.append(digest([training_state(model, [optimizer]), batch, loss]))
    if recorder:
        recorder.close()
    return seen


@pytest.mark.parametrize("make", PROBES)
def test_training_is_bit_identical(make, cross_entropy, digest, training_state, spool):
    plain = watched(None, cross_entropy, digest, training_state, spool.url)
    probe = make(every(1), max_products=6) if make is HessianEigenvalues else make(every(1))
    assert watched(probe, cross_entropy, digest, training_state, spool.url) == plain
    run = spool()
    assert not run.of_kind("probe_failed")
    measured = {m.observable for frame in run.frames for m in frame.measurements if m.value is not None}
    assert measured & set(probe.observables)


@pytest.mark.parametrize("make", PROBES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_said(make, bad, mean_square, spool):
    model = nn.Linear(3, 1)

    def loss_fn(model, batch):
        return mean_square(model, batch) * (bad if is_probing() else 1.0)

    data = [(torch.randn(4, 3), torch.randn(4, 1)) for _ in range(2)]
    probe = make(every(1))
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), loss_fn, data, [probe], spool.url)
    run = spool()
    assert not run.of_kind("probe_failed")
    found = [m for frame in run.frames for m in frame.measurements if m.observable in probe.observables]
    assert {m.status for m in found} == {"non_finite"}
    assert all(m.reason for m in found)


@pytest.mark.parametrize("make", PROBES)
def test_copies_and_pickles_hold_no_weights(make, mean_square, picklable, spool):
    """A probe interrupted between the two halves of a measurement holds the weights; a copy of it does not."""
    model = nn.Linear(300, 300)
    probe = make(every(1))
    data = [(torch.randn(4, 300), torch.randn(4, 300)) for _ in range(3)]
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), mean_square, data, [probe], spool.url)
    weights = dict(model.named_parameters())
    probe.prepare(types.SimpleNamespace(parameters=weights, optimizers=[], hold=lambda: weights))
    assert probe._held
    trip = picklable(probe)
    assert not trip._held
    held = [value for value in vars(trip).values() if isinstance(value, torch.Tensor)]
    assert not held
    assert trip.name == probe.name
    assert len(pickle.dumps(probe)) < 20_000
