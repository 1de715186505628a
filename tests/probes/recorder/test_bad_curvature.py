"""Whatever the loss is, probes of curvature give a status and a reason, and training goes on as without them."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from learnmech.probes import (
    BatchSharpness,
    CriticalSharpness,
    HessianEigenvalues,
    HessianNoiseScale,
    HessianSpectrum,
    LossChange,
    Recorder,
    Sharpness,
    every,
)

FORWARDS = {"loss_change", "critical_step", "critical_sharpness"}
"""What needs values of the loss alone, which a constant has too."""
SCOPES = ("", "1", "0.5", "top_5")
PROBES = (
    Sharpness,
    BatchSharpness,
    LossChange,
    CriticalSharpness,
    HessianEigenvalues,
    HessianSpectrum,
    HessianNoiseScale,
)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.idle = nn.Linear(3, 2), nn.Linear(3, 2)
        self.phase = nn.Parameter(torch.zeros(2, dtype=torch.complex64), requires_grad=False)
        self.count = nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False)

    def forward(self, x):
        return self.used(x)


def honest(model, batch):
    return mse_loss(model(batch[0]), batch[1])


def drifting():
    calls = itertools.count()
    return lambda model, batch: honest(model, batch) * (1 + 0.1 * next(calls))


BAD = {
    "nan": lambda model, batch: honest(model, batch) * float("nan"),
    "constant": lambda model, batch: torch.tensor(1.0, requires_grad=True) * 1.0,
    "detached": lambda model, batch: honest(model, batch).detach(),
    "vector": lambda model, batch: (model(batch[0]) - batch[1]).square().mean(0),
    "raising": lambda model, batch: model(batch[0][:, :2]).sum(),
    "drifting": drifting(),
}


def trained(loss_fn, probes, sink=None, batch=None, prepare=None):
    """Train on the honest loss; probes get `loss_fn`."""
    torch.manual_seed(0)
    model = Net()
    if prepare is not None:
        prepare(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.is_floating_point() or p.requires_grad], lr=0.1)
    batch = (torch.randn(6, 3), torch.randn(6, 2)) if batch is None else batch
    recorder = None if sink is None else Recorder(model, optimizer, loss_fn, probes, sink=sink)
    if recorder is not None:
        recorder.__enter__()
    for _ in range(4):
        optimizer.zero_grad()
        loss = honest(model, batch)
        if loss.requires_grad:
            loss.backward()
        optimizer.step()
        if recorder is not None:
            recorder.after_step(batch, loss)
    if recorder is not None:
        recorder.close()
    return [p.detach().clone() for p in model.parameters()]


def statuses(run, probe, but=()):
    found = [m for name in probe.observables if name not in but for scope in SCOPES for _, m in run.all(name, scope)]
    return {m.status.value for m in found}, " ".join(m.reason for m in found)


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.__name__)
@pytest.mark.parametrize("bad", sorted(BAD))
def test_a_bad_loss_is_data(bad, probe, spool):
    expected = trained(honest, [])
    found = trained(BAD[bad], [probe(every(1))], spool.url)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    status, reason = statuses(spool(), probe, but=FORWARDS if bad in {"constant", "detached"} else ())
    assert status or set(probe.observables) <= FORWARDS, "nothing was recorded"
    assert "ok" not in status
    assert status <= {"non_finite"} or reason


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.__name__)
def test_no_trainable_parameter_is_data(probe, spool):
    trained(honest, [probe(every(1))], spool.url, prepare=lambda model: model.requires_grad_(False))
    status, reason = statuses(spool(), probe)
    assert status == {"unsupported"}
    assert "parameter" in reason


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.__name__)
def test_an_empty_batch_is_data(probe, spool):
    trained(honest, [probe(every(1))], spool.url, batch=(torch.zeros(0, 3), torch.zeros(0, 2)))
    assert "ok" not in statuses(spool(), probe)[0]


def test_frozen_complex_and_integer_parameters_are_in_nobodys_way(spool):
    trained(honest, [Sharpness(every(1))], spool.url)
    assert statuses(spool(), Sharpness)[0] == {"ok"}


def test_a_trainable_complex_parameter_is_said(spool):
    def with_phase(model, batch):
        return honest(model, batch) + model.phase.abs().square().mean()

    trained(with_phase, [Sharpness(every(1))], spool.url, prepare=lambda model: model.phase.requires_grad_())
    status, reason = statuses(spool(), Sharpness)
    assert status == {"unsupported"}
    assert "complex" in reason
