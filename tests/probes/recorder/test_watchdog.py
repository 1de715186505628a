"""A measurement that takes far too long is broken off at its next evaluation of the loss, and training goes on."""

import time

import pytest
import torch

from learnmech.probes import BaseProbe, Recorder, Sharpness, deadline, every
from learnmech.wire import Status


class Endless(BaseProbe):
    """Evaluates the loss for ever."""

    default_name = "endless"
    observables = ("sharpness",)
    replays = True

    def measure(self, view):
        def work(loss):
            while True:
                loss(view.batch)
                time.sleep(0.01)

        return view.isolate(work)


def trained(sink, probes, steps=8):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(16, 4)

    def loss_fn(model, batch):
        return model(batch).square().mean()

    with Recorder(model, optimizer, loss_fn, probes, sink=sink) as recorder:
        for _ in range(steps):
            optimizer.zero_grad()
            loss_fn(model, x).backward()
            optimizer.step()
            recorder.after_step(x)
    return model.weight.detach().clone()


def test_it_is_a_recorded_failure_three_times_and_training_is_the_same(spool, monkeypatch):
    monkeypatch.setattr(deadline, "LEAST", 0.2)
    monkeypatch.setattr(deadline, "STEPS", 0)
    begin = time.monotonic()
    watched = trained(spool.url, [Endless(every(1))])
    assert time.monotonic() - begin < 20
    recorded = spool()
    failures = [m for _, m in recorded.all("sharpness") if m.status is Status.FAILED]
    assert len(failures) == 3
    assert "broken off" in failures[0].reason
    assert [event.kind for event in recorded.events].count("probe_disabled") == 1
    assert torch.equal(watched, trained(f"{spool.url}-2", []))


def test_products_are_broken_off_as_well(spool, monkeypatch):
    monkeypatch.setattr(deadline, "LEAST", 0.0)
    monkeypatch.setattr(deadline, "STEPS", 0)
    trained(spool.url, [Sharpness(every(1))])
    assert {m.status for _, m in spool().all("sharpness")} == {Status.FAILED}


def test_nested_deadlines_end_with_the_inner_one():
    with deadline.within(100.0):
        with deadline.within(-1.0), pytest.raises(deadline.TookTooLong, match="broken off"):
            deadline.check()
        deadline.check()
    deadline.check()
