"""State that no isolation can put back is found by evaluating the loss twice, before anything is made of it."""

import itertools

import pytest
import torch
from torch import nn

from learnmech.probes import GradientNoiseScale, Recorder, Sharpness, every


def counting():
    numbers = itertools.count()
    return lambda: 1 + 0.01 * next(numbers)


def drawing():
    generator = torch.Generator().manual_seed(0)
    return lambda: torch.rand((), generator=generator)


def train(factor, spool, steps=4, calls=None):
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def loss_fn(model, batch):
        if calls is not None:
            calls.append(1)
        return model(batch).square().mean() * factor()

    probes = [Sharpness(every(1)), GradientNoiseScale(every(1), source="split")]
    with Recorder(model, optimizer, loss_fn, probes, sink=spool.url) as recorder:
        for _ in range(steps):
            batch = torch.randn(8, 3)
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
            recorder.after_step(batch)
    return spool()


@pytest.mark.parametrize("make", [counting, drawing])
def test_a_loss_with_a_memory_of_its_own_is_refused_after_two_evaluations(make, spool):
    calls = []
    run = train(make(), spool, calls=calls)
    assert len(calls) == 2
    for observable in ("sharpness", "noise_scale"):
        [(step, measurement)] = run.all(observable)
        assert (step, measurement.status) == (0, "unsupported")
        assert "Two evaluations of the loss" in measurement.reason
        assert "is_probing()" in measurement.reason


def test_random_numbers_of_the_process_are_no_memory(spool):
    run = train(lambda: 1 + torch.rand(()), spool)
    assert [m.status for _, m in run.all("sharpness")] == ["ok"] * 4


def test_a_loss_that_is_not_finite_at_first_is_asked_again(spool):
    values = itertools.chain([float("nan")] * 2, itertools.repeat(1.0))
    run = train(lambda: next(values), spool, steps=2)
    assert "unsupported" not in {m.status for _, m in run.all("sharpness")}
