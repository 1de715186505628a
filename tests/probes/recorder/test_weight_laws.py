"""Weights as the theory of their dynamics has them: rotational equilibrium, and fluctuation and dissipation."""

import math
import statistics

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy as class_loss

from learnmech.probes import Recorder, WeightDynamics, every


def tail(run, observable, scope="scale_invariant", power=1):
    """The mean over the recorded steps (of a power)."""
    values = list(run.values(observable, scope).values())
    assert len(values) >= 20
    return statistics.fmean(value**power for value in values) ** (1 / power)


def make(kind, parameters, rate, decay):
    if kind == "AdamW":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, betas=(0.9, 0.99))
    return torch.optim.SGD(parameters, lr=rate, weight_decay=decay, momentum=0.9 if kind == "SGDM" else 0.0)


def angle(kind, rate, decay):
    """Kosson et al. 2023, table 1; beta1 and mu are 0.9."""
    factor = {"AdamW": 0.1 / 1.9, "SGDM": 1 / 1.9, "SGD": 1.0}[kind]
    return math.sqrt(2 * rate * decay * factor)


@pytest.mark.parametrize("kind", ["AdamW", "SGDM", "SGD"])
def test_a_random_walk_of_scale_invariant_weights_reaches_angle_and_norm(kind, spool):
    """Gradients are noise across the weights, as long as 1/|w|: all that the derivation of the formulas assumes."""
    generator = torch.Generator().manual_seed(0)
    model = nn.ParameterList([nn.Parameter(torch.randn(32, 16, generator=generator)) for _ in range(4)])
    n, rate, decay = 32 * 16, (1e-2, 0.5)[kind != "AdamW"], (0.5, 1e-2)[kind != "AdamW"]
    optimizer = make(kind, model.parameters(), rate, decay)
    probe = WeightDynamics(every(4, start=900))
    with Recorder(model, optimizer, lambda model, x: x, [probe], sink=spool.url, budget=0) as recorder:
        for _ in range(1200):  # 12 relaxation times 1 / (2 eta lambda)
            for w in model:
                noise = torch.randn(w.shape, generator=generator)
                norm_sq = w.detach().square().sum()
                w.grad = (noise - (noise * w.detach()).sum() / norm_sq * w.detach()) / norm_sq.sqrt()
            recorder.after_backward(None)
            optimizer.step()
            recorder.after_step(None)
    run = spool()
    assert tail(run, "angular_update", power=2) == pytest.approx(angle(kind, rate, decay), rel=0.1)
    if kind == "AdamW":
        size = math.sqrt(rate / (2 * decay))  # rms of the weights
    else:  # |w|^4 = eta |g~|^2 / (2 lambda (1 - mu)), g~ the gradient at unit norm: here |g~|^2 = n - 1 on average
        size = (rate * (n - 1) / (2 * decay * (0.1 if kind == "SGDM" else 1.0))) ** 0.25 / math.sqrt(n)
    assert tail(run, "weight_rms") == pytest.approx(size, rel=0.1)


@pytest.mark.parametrize(("kind", "norm"), [("SGDM", nn.BatchNorm1d), ("AdamW", nn.LayerNorm)])
def test_layers_before_a_normalization_reach_angle_and_norm(kind, norm, spool):
    """Two hidden layers before normalizations without gains, on targets half of which are drawn anew each time.

    SGD settles |w|^4 at eta <|g|^2 |w|^2> / (2 lambda (1 - mu)), AdamW the rms at sqrt(eta / (2 lambda)).
    """
    torch.manual_seed(0)
    plain = {"affine": False} if norm is nn.BatchNorm1d else {"elementwise_affine": False}
    model = nn.Sequential(
        *(nn.Linear(16, 32, bias=False), norm(32, **plain), nn.ReLU()),
        *(nn.Linear(32, 32, bias=False), norm(32, **plain), nn.ReLU(), nn.Linear(32, 4)),
    )
    teacher = torch.randn(16, 4)
    rate, decay = (2e-3, 2.0) if kind == "AdamW" else (0.05, 0.08)
    optimizer = make(kind, model.parameters(), rate, decay)
    loss_fn = lambda model, batch: class_loss(model(batch[0]), batch[1])
    probe = WeightDynamics(every(10, start=600), per_parameter=True)
    with Recorder(model, optimizer, loss_fn, [probe], sink=spool.url, budget=0) as recorder:
        for _ in range(1200):
            x = torch.randn(16, 16)
            y = torch.where(torch.rand(16) < 0.5, torch.randint(4, (16,)), (x @ teacher).argmax(1))
            optimizer.zero_grad()
            loss = loss_fn(model, (x, y))
            loss.backward()
            recorder.after_backward((x, y))
            optimizer.step()
            recorder.after_step((x, y), loss)
    run = spool()
    (_, first), *_ = run.all("angular_update", "scale_invariant")
    assert first.method == "rms_of_2", "both hidden layers were found, the head was not"
    assert tail(run, "angular_update", power=2) == pytest.approx(angle(kind, rate, decay), rel=0.1)
    for name in ("0.weight", "3.weight"):
        assert tail(run, "angular_update", name, power=2) == pytest.approx(angle(kind, rate, decay), rel=0.1)
        norms, slopes = (list(run.values(observable, name).values()) for observable in ("weight_norm", "grad_norm"))
        if kind == "AdamW":
            settled = math.sqrt(rate / (2 * decay) * model.get_parameter(name).numel())
        else:
            unit_sq = statistics.fmean((w * g) ** 2 for w, g in zip(norms, slopes, strict=True))
            settled = (rate * unit_sq / (2 * decay * 0.1)) ** 0.25
        assert tail(run, "weight_norm", name, power=4) == pytest.approx(settled, rel=0.1)


@pytest.mark.parametrize(("momentum", "dampening", "tolerance"), [(0.0, 0.0, 1e-4), (0.9, 0.0, 0.05), (0.9, 0.5, 0.05)])
def test_both_sides_of_the_relation_differ_by_the_drift_of_the_norm(momentum, dampening, tolerance, spool):
    """O_L - O_R = -(1 - mu) / (1 - tau) (|w_T|^2 - |w_0|^2) / (2 eta T): exact without momentum, else but for the ends.

    The left side comes from ratio and updates, the right side from the weights as the loop sees them.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    rate, steps = 0.05, 700
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum, dampening, weight_decay=0.01)
    loss_fn = lambda model, batch: class_loss(model(batch[0]), batch[1])
    norm_sq = lambda: sum(float(p.detach().square().sum()) for p in model.parameters())
    probe = WeightDynamics(every(1), half_life=1e9)  # all steps weigh the same
    first = norm_sq()
    with Recorder(model, optimizer, loss_fn, [probe], sink=spool.url, budget=0) as recorder:
        for _ in range(steps):
            x = torch.randn(8, 8, dtype=torch.float64)
            batch = (x, torch.randint(4, (8,)))
            optimizer.zero_grad()
            loss = loss_fn(model, batch)
            loss.backward()
            recorder.after_backward(batch)
            optimizer.step()
            recorder.after_step(batch, loss)
    drift = norm_sq() - first
    run = spool()
    ratio = run.values("fluctuation_dissipation")[steps - 1]
    squares = statistics.fmean(value**2 for value in run.values("update_norm").values())
    right = (1 + momentum) / (2 * rate * (1 - dampening)) * squares
    expected = -(1 - momentum) / (1 - dampening) * drift / (2 * rate * steps)
    assert abs(expected) > 0.02 * right, "there is a drift to be seen"
    assert (ratio - 1) * right == pytest.approx(expected, rel=tolerance)
