"""What every step costs comes out of the budget before the probes get their share."""

import pytest

from learnmech.probes import Recorder
from learnmech.probes.budget import Governor


def probe_time(bookkeeping_per_step, steps=50_000, step=0.03, cost=0.05):
    governor = Governor(0.01)
    governor.open("p", governed=True)
    elapsed = spent = 0.0
    for _ in range(steps):
        elapsed += step + bookkeeping_per_step
        governor.bookkeeping += bookkeeping_per_step
        if governor.may_run("p", elapsed):
            governor.charge("p", cost)
            elapsed += cost
            spent += cost
    return spent / elapsed


def test_probes_get_what_bookkeeping_leaves():
    assert probe_time(0.0) == pytest.approx(0.01, rel=0.02)
    assert probe_time(0.0001) == pytest.approx(0.01 - 0.0001 / 0.03, rel=0.02)


def test_and_half_of_the_budget_where_steps_are_too_short_for_it():
    assert probe_time(0.001) == pytest.approx(0.005, rel=0.02)


def test_the_engine_keeps_the_account(mean_square_training):
    recorder = mean_square_training
    governor = recorder._engine.runner.governor
    assert 0 < governor.bookkeeping < recorder._engine.runner.agenda.elapsed


@pytest.fixture
def mean_square_training(spool):
    import torch

    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, lambda m, b: m(b).square().mean(), sink=spool.url) as recorder:
        for _ in range(20):
            batch = torch.randn(4, 2)
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
            recorder.after_step(batch)
        yield recorder
