"""Whatever comes, training goes on, and what is left out is said: nothing raises even in strict mode."""

import pytest
import torch
from torch import nn

from learnmech.probes import Recorder, every
from learnmech.probes.isolation import Refusal
from learnmech.probes.probe import TrainingView
from learnmech.probes.symmetries import Symmetries
from learnmech.probes.symmetry import candidates


def train(
    model,
    optimizer,
    loss_fn,
    spool,
    steps=8,
    *,
    batch=lambda step: torch.randn(16, 6, dtype=torch.float64),
    each=None,
    strict=True,
):
    probe = Symmetries(every(1))
    with Recorder(model, optimizer, loss_fn, [probe], sink=spool.url, strict=strict) as recorder:
        for step in range(steps):
            one = batch(step)
            optimizer.zero_grad()
            loss = loss_fn(model, one)
            loss.backward()
            optimizer.step()
            recorder.after_step(one, loss)
            if each is not None:
                each(step)
    run = spool()
    return run, [event.message for event in run.of_kind("probe_notice")], probe


def plain(*layers):
    torch.manual_seed(0)
    return nn.Sequential(*layers)


def norm(model, batch):
    return model(batch).tanh().square().mean()


def relu():
    return plain(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3)).double()


def test_frozen_parameters_and_such_without_a_gradient(spool):
    model = relu()
    model.spare = nn.Linear(3, 3).double()
    model.forward = lambda x: model[4](model[3](model[2](model[1](model[0](x)))))
    model[4].weight.requires_grad_(False)
    run, told, _ = train(
        model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1), norm, spool
    )
    assert run.values("symmetry_groups", "symmetry:rescale") == {4: 1}
    assert "left out: spare.weight and 1 more (no gradient)" in told[0]


def test_sparse_gradients(spool):
    model = plain(nn.Embedding(10, 8, sparse=True), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))
    batch = lambda step: torch.randint(10, (16,))
    # not strict: other probes of a recorder may not take them
    run, told, _ = train(model, torch.optim.SGD(model.parameters(), lr=0.1), norm, spool, batch=batch, strict=False)
    assert run.values("symmetry_groups", "symmetry:rescale") == {4: 1}
    assert any("0.weight (sparse gradient)" in message for message in told)
    assert not any("symmetries" in event.message for event in run.of_kind("probe_failed"))


def test_all_zero_and_non_finite_gradients(spool):
    model = relu()
    factors = [0.0, float("nan"), float("inf")]
    run, *_ = train(
        model,
        torch.optim.SGD(model.parameters(), lr=0.0),
        lambda model, batch: model(batch).square().mean() * factors[len(seen) % 3],
        spool,
        each=(seen := []).append,
    )
    assert run.values("symmetry_groups") == {0: 0}
    assert not run.of_kind("probe_failed")


def test_diverged_weights(spool):
    model = relu()
    run, *_ = train(model, torch.optim.SGD(model.parameters(), lr=1e30), norm, spool, steps=6)
    assert not run.of_kind("probe_failed")


def test_parameters_added_and_taken_away_in_mid_run(spool):
    model = relu()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def grow(step):
        if step == 6:
            model.extend([nn.ReLU(), nn.Linear(3, 7).double()])
            optimizer.add_param_group({"params": model[6].parameters(), "lr": 0.2})
        if step == 13:
            model[6] = nn.Identity()

    run, told, _ = train(model, optimizer, norm, spool, steps=16, each=grow)
    assert run.values("symmetry_groups", "symmetry:rescale") == {4: 2, 11: 3, 14: 2}
    errors = run.values("charge_drift_error", "symmetry:rescale")
    assert max(errors.values()) < 1e-2, "also between groups of the optimizer with different learning rates"
    assert not told


def test_unknown_modules_tied_weights_and_other_numbers(spool):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.scalar = nn.Parameter(torch.tensor(1.0))
            self.empty = nn.Parameter(torch.zeros(0, 3))
            self.weight = nn.Parameter(torch.randn(2, 3, 6))
            self.phase = nn.Parameter(torch.randn(6, dtype=torch.complex128))
            self.cell = nn.LSTM(6, 5, batch_first=True)
            self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)
            self.two.weight = self.one.weight

        def forward(self, x):
            y = self.two(self.one(x).relu()).relu() * self.scalar + (x * self.phase).abs()
            z = torch.einsum("abc,nc->nab", self.weight, y).flatten(1)
            return torch.cat([z, self.cell(y[:, None])[0][:, 0]], 1) + self.empty.sum()

    torch.manual_seed(0)
    model = Odd().double()
    run, told, _ = train(model, torch.optim.SGD(model.parameters(), lr=0.01), norm, spool)
    assert not run.of_kind("probe_failed")
    assert any("phase (its numbers are complex128)" in message for message in told)


@pytest.mark.parametrize("model", [nn.Identity(), nn.ParameterList([torch.zeros(())]), nn.Linear(1, 1), nn.ReLU()])
def test_models_with_next_to_nothing(model):
    assert len(candidates(model)) < 10


def test_sharded_parameters_are_refused_or_left_out():
    class Shard:
        _local_tensor = device_mesh = None

    view = TrainingView(0, nn.Identity(), [], {"w": Shard()}, None, None, None)
    with pytest.raises(Refusal, match="sharded"):
        Symmetries().prepare(view)


def test_two_optimizers_are_not_predicted(spool):
    model = relu()
    halves = [torch.optim.SGD(model[i].parameters(), lr=0.1) for i in (0, 2)]
    probe, found, reasons = Symmetries(every(1), looks=1), [], []
    parameters = dict(model.named_parameters())
    view = TrainingView(0, model, halves, parameters, None, lambda v, build: found.append((v, build)), None)
    for _ in range(3):
        model.zero_grad()
        norm(model, torch.randn(16, 6, dtype=torch.float64)).backward()
        view.gradients = {name: p.grad for name, p in parameters.items()}
        probe.prepare(view)
        halves[0].step()
        probe.measure(view)
        values, build = found.pop()
        last = build([float(x) for value in values for x in value.reshape(-1)])
        reasons += [m.reason for m in last if m.observable == "charge_drift_predicted"]
    assert "2 optimizers" in reasons[0]


def test_gradients_seen_only_after_the_update(spool):
    """An optimizer without hooks: residuals are measured at the weights held from before, predictions are not made."""
    model = relu()
    parameters, probe, found = dict(model.named_parameters()), Symmetries(every(1)), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    hold = lambda: {name: p.detach().clone() for name, p in parameters.items()}
    view = TrainingView(0, model, [optimizer], parameters, None, lambda v, build: found.append((v, build)), hold)
    for _ in range(8):
        view.gradients = None
        probe.prepare(view)
        optimizer.zero_grad()
        norm(model, torch.randn(16, 6, dtype=torch.float64)).backward()
        optimizer.step()
        view.gradients = {name: p.grad for name, p in parameters.items()}
        probe.measure(view)
        values, build = found.pop()
        last = build([float(x) for value in values for x in value.reshape(-1)])
    assert len(probe.certificates.certified()) == 2
    assert {m.observable for m in last} == {"symmetry_residual", "charge", "charge_drift"}
