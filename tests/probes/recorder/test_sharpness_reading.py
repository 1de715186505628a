"""One product between two measurements of the sharpness: the curvature along its eigenvector, a lower bound."""

import copy

import pytest
import torch
from torch import nn

from learnmech.probes import Sharpness, every
from learnmech.probes.curvature import HessianOperator
from learnmech.probes.isolation import FunctionSource, Skip, isolated
from learnmech.probes.probe import TrainingView
from learnmech.probes.sharpness_reading import SharpnessReading


def view_of(model, loss_fn, batch, optimizers=()):
    source = FunctionSource(model, loss_fn)
    return TrainingView(
        step=0,
        model=model,
        optimizers=optimizers,
        parameters=dict(model.named_parameters()),
        isolate=lambda work, **settings: isolated(source, work, **settings),
        defer=lambda tensors, convert: None,
        batch=batch,
    )


def test_reading_is_the_closed_form_along_the_followed_vector(quartic):
    """H = diag(w^2); the top vector is e_2 at (1, -2, 1.5). After the weights moved, v'Hv = w_2^2 whatever w_1 is."""
    model = quartic.model()
    sharpness = Sharpness(every(10), tol=1e-9)
    reading = SharpnessReading(every(1), of=sharpness)
    view = view_of(model, quartic.loss, torch.zeros(4, 1))
    with pytest.raises(Skip, match="no eigenvector yet"):
        reading.measure(view)
    sharpness.measure(view)
    kept = sharpness.direction(3).clone()
    for values in ((1.0, -1.9, 1.5), (1.0, -1.0, 1.2), (3.0, -1.8, 0.0)):
        with torch.no_grad():
            model.w.copy_(torch.tensor(values))
        (found,) = reading.measure(view)
        top = float(model.w.detach().square().max())
        assert found.observable == "sharpness_rayleigh"
        assert found.value == pytest.approx(float(model.w.detach()[1] ** 2), rel=1e-6)
        assert found.value <= top * (1 + 1e-9)  # a lower bound, also where another direction has overtaken
        assert (found.status, found.method) == ("ok", "rayleigh_quotient_by_double_backward")
        eigenvalues = model.w.detach().square()
        assert float((eigenvalues - found.value).abs().min()) <= found.stderr + 1e-9
    assert torch.equal(sharpness.direction(3), kept)


def test_reading_costs_one_product_and_changes_nothing(cross_entropy, monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    view = view_of(model, cross_entropy, (torch.randn(32, 6), torch.randint(0, 3, (32,))))
    sharpness = Sharpness(every(10))
    reading = SharpnessReading(every(1), of=sharpness)
    full = {one.observable: one for one in sharpness.measure(view)}["sharpness"]
    reading.measure(view)  # the first use looks for the method that works
    before = copy.deepcopy(model.state_dict())
    calls = []
    matvec = HessianOperator.matvec
    monkeypatch.setattr(HessianOperator, "matvec", lambda self, v: calls.append(1) or matvec(self, v))
    (found,) = reading.measure(view)
    assert len(calls) == 1
    assert found.value == pytest.approx(full.value, rel=1e-5)
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_bad_input_is_told(cross_entropy):
    with pytest.raises(TypeError, match="expected the Sharpness probe"):
        SharpnessReading(of="sharpness")
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    batch = (torch.randn(8, 6), torch.randint(0, 3, (8,)))
    sharpness = Sharpness(every(1))
    reading = SharpnessReading(every(1), of=sharpness)
    sharpness.measure(view_of(model, cross_entropy, batch))
    with torch.no_grad():
        model.weight.fill_(torch.nan)
    (found,) = reading.measure(view_of(model, cross_entropy, batch))
    assert found.status == "non_finite"
    assert "loss" in found.reason


def test_follows_along_a_training_from_below(cross_entropy):
    """Against a converged measurement at every step: never above, and close while the vector holds."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    batch = (torch.randn(64, 8), torch.randint(0, 3, (64,)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    sharpness, reference = Sharpness(every(10)), Sharpness(every(1), tol=1e-6, max_products=100)
    reading = SharpnessReading(every(1), of=sharpness)
    shares = []
    for step in range(31):
        view = view_of(model, cross_entropy, batch)
        if step % 10 == 0:
            sharpness.measure(view)
        truth = next(one.value for one in reference.measure(view) if one.observable == "sharpness")
        (found,) = reading.measure(view)
        assert found.value <= truth * (1 + 1e-5)
        shares.append(found.value / truth)
        optimizer.zero_grad()
        cross_entropy(model, batch).backward()
        optimizer.step()
    assert sorted(shares)[len(shares) // 2] > 0.98
