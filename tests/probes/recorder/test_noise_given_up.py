"""Pieces that never add up to the gradient are given up, and their hooks with them."""

import pytest
import torch
from torch import nn

from learnmech.probes import GradientNoiseScale, Recorder, every
from learnmech.probes.isolation import Refusal
from learnmech.probes.noise.choice import PATIENCE, Choice
from learnmech.probes.noise.leaves import LeafHooks


def loss(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


@pytest.fixture
def armed(monkeypatch):
    """How often hooks were put on."""
    found, arm = [], LeafHooks.arm
    monkeypatch.setattr(LeafHooks, "arm", lambda self: (found.append(1), arm(self))[1])
    return found


def noisy(spool, source, steps=16, disturbed=lambda step: True, before=lambda recorder: None):
    """Training adds noise to the gradient, as private training does, before the recorder is told."""
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    probe = GradientNoiseScale(every(1), source=source)
    with Recorder(model, optimizer, loss, [probe], sink=spool.url, accumulation=2) as recorder:
        before(recorder)
        for step in range(steps):
            optimizer.zero_grad()
            for k in range(2):
                batch = (torch.randn(8, 4), torch.randn(8, 4))
                (loss(model, batch) / 2).backward()
                if k == 1 and disturbed(step):
                    for p in model.parameters():
                        p.grad.add_(torch.randn_like(p.grad) * p.grad.norm())
                recorder.after_backward(batch)
            optimizer.step()
            recorder.after_step(batch)
    return spool()


def test_batches_are_cut_instead(spool, armed):
    run = noisy(spool, "auto")
    found = dict(run.all("noise_trace"))
    void = [m for m in found.values() if m.value is None]
    assert len(void) <= PATIENCE + 1
    assert {m.method for m in found.values() if m.value is not None} == {"split_batch_in_4"}
    assert len(found) - len(void) >= 16 - PATIENCE - 2
    (notice,) = run.of_kind("probe_notice")
    assert "does not add up" in notice.message
    assert "batches are cut instead" in notice.message
    assert len(armed) == PATIENCE


def test_refused_where_nothing_else_is_wanted(spool, armed):
    run = noisy(spool, "pieces")
    *void, refusal = [m for _, m in run.all("noise_trace")]
    assert refusal.status == "unsupported"
    assert "does not add up" in refusal.reason
    assert 'source="split"' in refusal.reason
    assert {m.status for m in void} <= {"undetermined"}
    assert len(void) <= PATIENCE
    assert len(armed) == PATIENCE


def test_refused_where_the_loss_cannot_be_evaluated(spool, armed):
    run = noisy(spool, "auto", before=lambda recorder: recorder._engine.refuse_replays(0, "It cannot be replayed."))
    assert [m for _, m in run.all("noise_trace")][-1].status == "unsupported"
    assert len(armed) == PATIENCE


def test_now_and_then_is_no_reason(spool, armed):
    run = noisy(spool, "auto", disturbed=lambda step: step % PATIENCE)
    assert {m.method for _, m in run.all("noise_trace") if m.value is not None} == {"micro_batches"}
    assert len(armed) >= 16
    assert not run.of_kind("probe_notice")


@pytest.mark.parametrize("source", ["auto", "pieces"])
def test_in_several_processes_it_is_refused(source):
    """By sums that all of them have, so that all do so at the same update."""
    choice = Choice(source)
    choice.expect(4, 2)
    for _ in range(PATIENCE - 1):
        choice.judged("it does not add up")
        choice.settle()
    choice.judged("it does not add up")
    with pytest.raises(Refusal, match="does not add up"):
        choice.settle()
