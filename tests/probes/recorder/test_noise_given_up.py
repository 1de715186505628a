"""Pieces that never add up to the gradient are given up, and their hooks with them."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from learnmech.probes import GradientNoiseScale, Recorder, every
from learnmech.probes.isolation import Refusal
from learnmech.probes.noise.choice import LONG_PATIENCE, PATIENCE, Choice
from learnmech.probes.noise.contributions import Sums
from learnmech.probes.noise.leaves import LeafHooks
from learnmech.probes.noise.live import LivePieces
from learnmech.probes.noise.tally import Tally


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


@pytest.mark.parametrize("processes", [1, 2])
def test_in_several_processes_numbers_that_are_zero_by_chance_are_no_reason(processes):
    """Embeddings of which few rows are met; one process cuts batches instead, several have nothing else."""
    model = nn.Linear(4, 4)
    view = SimpleNamespace(model=model, parameters=dict(model.named_parameters()), processes=processes)
    live = LivePieces(view, expected=2, members={"": ["weight", "bias"]})
    live.close()
    sums, nothing = Sums(1), torch.zeros(3)
    sums.add_pieces(torch.ones(1, 2), units=8.0)
    tally = Tally.of(sums, torch.ones(1), nothing, nothing)
    found = live.parts(tally, tally.row.tolist(), precise=True, population=None)[""]
    assert found.status == "undetermined"
    assert "all zero" in found.reason
    assert bool(live.void) == (processes == 1)


def batches_of(*sizes):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 4, generator=generator), torch.randn(n, 4, generator=generator)) for n in sizes]


def single(spool, source, data, between=lambda step, model: None, loss=loss):
    """Updates of one batch."""
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    probe = GradientNoiseScale(every(1), source=source)
    with Recorder(model, optimizer, loss, [probe], sink=spool.url) as recorder:
        for step, batch in enumerate(data):
            optimizer.zero_grad()
            loss(model, batch).backward()
            between(step, model)
            optimizer.step()
            recorder.after_step(batch)
    return spool()


def test_one_odd_update_does_not_end_single_examples(spool):
    """A step that was tried twice: two backward passes are in its gradient."""
    data = batches_of(*[8] * 8)

    def twice(step, model):
        if step == 3:
            loss(model, data[step]).backward()

    run = single(spool, "auto", data, twice)
    assert {step: m.method for step, m in run.all("noise_trace") if step not in (3, 4)} == {
        0: "split_batch_in_4",
        1: "examples",
        2: "examples",
        5: "examples",
        6: "examples",
        7: "examples",
    }
    assert not run.of_kind("probe_notice")


def test_examples_that_were_asked_for_outlast_batches_of_odd_sizes(spool):
    run = single(spool, "examples", batches_of(16, *range(15, 15 - PATIENCE - 2, -1), 16, 16, 16))
    assert list(run.values("noise_trace"))[-2:] == [PATIENCE + 4, PATIENCE + 5]


def test_sizes_that_are_never_met_again_are_given_up(spool):
    run = single(spool, "examples", batches_of(*range(10, 10 + LONG_PATIENCE + 3)))
    (refusal,) = [m for _, m in run.all("noise_trace")]
    assert refusal.status == "unsupported"
    assert "examples, where" in refusal.reason


def test_batches_that_do_not_tell_how_many_examples_they_hold(spool):
    """Texts, which the loss makes numbers of."""

    def of_texts(model, texts):
        x = torch.tensor([[float(len(text))] * 4 for text in texts])
        return model(x).square().mean()

    run = single(spool, "examples", [["a", "bc", "def"]] * (PATIENCE + 2), loss=of_texts)
    (refusal,) = run.all("noise_trace")
    assert refusal[0] < PATIENCE
    assert refusal[1].status == "unsupported"
    assert "how many examples" in refusal[1].reason
    assert "one row for each example" in refusal[1].reason


def test_hooks_are_let_go_of_where_watching_fails(spool):
    """A layer that raises when it is looked at; the training must not keep what was put on before."""

    class Odd(nn.Linear):
        @property
        def batch_first(self):
            raise RuntimeError("not now")

    model = nn.Sequential(nn.Linear(4, 4), Odd(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    probe = GradientNoiseScale(every(1), source="examples")
    with Recorder(model, optimizer, loss, [probe], sink=spool.url) as recorder:
        for batch in batches_of(8, 8, 8):
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()
            recorder.after_step(batch)
    for p in model.parameters():
        assert not p._backward_hooks
        assert not p._post_accumulate_grad_hooks
