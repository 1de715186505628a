"""The noise from micro-batches, where trainings do what was not expected: a clear word, and they go on."""

import math

import pytest
import torch
from torch import nn

from learnmech.probes import GradientNoiseScale, Recorder, every


def test_one_layer_reached_several_times_is_not_taken_for_micro_batches(spool, noisy):
    """Two backward passes in each micro-batch, and nothing tells where it ends."""
    model, x, y = noisy.task()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recorder(
        model, optimizer, noisy.loss, [GradientNoiseScale(every(1))], sink=spool.url, accumulation=2
    ) as recorder:
        for _ in range(6):
            optimizer.zero_grad()
            for batch in ((x[:8], y[:8]), (x[8:16], y[8:16])):
                (noisy.loss(model, batch) / 2).backward()
                (noisy.loss(model, batch) / 4).backward()
            optimizer.step()
            recorder.after_step(batch)
    run = spool()
    assert {m.method for _, m in run.all("noise_trace")} == {"split_batch_in_4"}
    assert any("4 parts where 2 micro-batches" in event.message for event in run.of_kind("probe_notice"))


def test_weights_may_change_their_shape_between_updates(spool, noisy):
    """Pruning and offloading replace the data of a parameter while a measurement waits for its backward pass."""
    model, x, y = noisy.task()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recorder(
        model, optimizer, noisy.loss, [GradientNoiseScale(every(1))], sink=spool.url, accumulation=2
    ) as recorder:
        for step in range(4):
            if step == 2:
                model[0].weight.data, model[0].bias.data = model[0].weight.data[:7], model[0].bias.data[:7]
                model[2].weight.data = model[2].weight.data[:, :7]
            optimizer.zero_grad()
            for k in range(2):
                batch = (x[8 * k :][:8], y[8 * k :][:8])
                (noisy.loss(model, batch) / 2).backward()
                recorder.after_backward(batch)
            optimizer.step()
            recorder.after_step(batch)
    assert list(spool().values("noise_trace")) == [0, 1, 2, 3]


def test_the_budget_measures_what_it_has_decided_on(spool, noisy):
    """The cost of watching is charged at once; it must not take back the decision before the update is measured."""
    model, x, y = noisy.task()
    probe = GradientNoiseScale()
    watched = []
    arm = probe.arm
    probe.arm = lambda view: (watched.append(view.step), arm(view))
    run = noisy.train(spool, model, x, y, steps=150, probes=[probe], budget=1.0)
    assert len(watched) >= 3
    assert set(run.values("noise_trace")) == {step for step in watched if step < 150}


def test_updates_get_smaller(spool, noisy):
    model, x, y = noisy.task()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recorder(model, optimizer, noisy.loss, [GradientNoiseScale(every(1))], sink=spool.url) as recorder:
        for pieces in (4, 4, 2, 4, 2, 2, 2, 2, 2):
            optimizer.zero_grad()
            for k in range(pieces):
                batch = (x[8 * k :][:8], y[8 * k :][:8])
                (noisy.loss(model, batch) / pieces).backward()
                recorder.after_backward(batch)
            optimizer.step()
            recorder.after_step(batch)
    run = spool()
    measured = [step for step, m in run.all("noise_trace") if m.method == "micro_batches"]
    assert measured == [3, 6, 7, 8]
    assert run.frames[-1].samples == 8 * 24


def test_inputs_that_are_always_zero(spool, noisy):
    """Their weights have no gradient: the numbers that are compared must not all be among them."""
    torch.manual_seed(0)
    model = nn.Linear(300, 4, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    probes = [GradientNoiseScale(every(1))]
    with Recorder(model, optimizer, noisy.loss, probes, sink=spool.url, accumulation=2, strict=True) as recorder:
        for _ in range(3):
            optimizer.zero_grad()
            for _ in range(2):
                x = torch.randn(8, 300)
                x[:, :100] = 0.0
                (noisy.loss(model, (x, torch.randn(8, 4))) / 2).backward()
                recorder.after_backward((x, x))
            optimizer.step()
            recorder.after_step((x, x))
    assert [m.status for _, m in spool().all("noise_trace")] == ["ok"] * 3


@pytest.mark.parametrize(("units", "said"), [([1.0], "returned [1.0]"), (-3, "returned -3"), (None, "")])
def test_units_that_are_none(spool, units, said, noisy):
    model, x, y = noisy.task()
    probes = [GradientNoiseScale(every(1), units=None if units is None else lambda batch: units)]
    run = noisy.train(spool, model, x, y, steps=5, probes=probes)
    last = run.all("noise_trace")[-1][1]
    assert (last.status, said in last.reason) == ("unsupported" if said else "ok", True)
    assert not run.of_kind("probe_notice")


def test_weights_are_those_of_a_training_without_it(spools, digest, noisy):
    ends = []
    for probes in ([GradientNoiseScale(every(1))], [GradientNoiseScale(every(10**6))]):
        model, x, y = noisy.task()
        noisy.train(spools(), model, x, y, steps=5, probes=probes, lr=0.1)
        ends.append(digest(list(model.parameters())))
    assert ends[0] == ends[1]


def test_one_micro_batch_more_or_less_than_usual(spool, noisy):
    model, x, y = noisy.task()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recorder(
        model, optimizer, noisy.loss, [GradientNoiseScale(every(1))], sink=spool.url, accumulation=3, strict=True
    ) as recorder:
        for pieces in (3, 3, 1, 3, 2):
            optimizer.zero_grad()
            for _ in range(pieces):
                (noisy.loss(model, (x[:8], y[:8])) / 3).backward()
                recorder.after_backward((x[:8], y[:8]))
            optimizer.step()
            recorder.after_step((x[:8], y[:8]))
    assert list(spool().values("noise_trace")) == [0, 1, 3]


def test_accumulation_is_found_out(spool, noisy):
    """Nobody said that updates consist of micro-batches: it must be seen twice, then they are taken as they come."""
    model, x, y = noisy.task()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recorder(
        model, optimizer, noisy.loss, [GradientNoiseScale(every(1))], sink=spool.url, strict=True
    ) as recorder:
        for step in range(4):
            optimizer.zero_grad()
            for k in range(2):
                batch = (x[8 * (2 * step + k) :][:8], y[8 * (2 * step + k) :][:8])
                (noisy.loss(model, batch) / 2).backward()
                recorder.after_backward(batch)
            optimizer.step()
            recorder.after_step(batch)
    methods = [m.method for _, m in spool().all("noise_trace")]
    assert methods[0] == "split_batch_in_4"
    assert methods[-2:] == ["micro_batches"] * 2


@pytest.mark.parametrize(
    ("gradient", "status", "reason"),
    [(0.0, "undetermined", "is zero"), (math.nan, "non_finite", "not finite")],
)
def test_gradients_that_are_zero_or_not_finite(spool, gradient, status, reason, noisy):
    model, x, y = noisy.task()
    for p in model.parameters():
        p.register_hook(lambda g: torch.full_like(g, gradient))
    run = noisy.train(spool, model, x, y, steps=2)
    for observable in ("noise_trace", "grad_sq_norm", "noise_scale"):
        for _, m in run.all(observable):
            assert m.status == status
            assert m.value is None if status == "undetermined" else math.isnan(m.value)
            assert reason in m.reason


def test_what_does_not_add_up_to_the_gradient_is_void(spool, noisy):
    model, x, y = noisy.task()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    probes = [GradientNoiseScale(every(1))]
    with Recorder(model, optimizer, noisy.loss, probes, sink=spool.url, accumulation=2) as recorder:
        for k in range(2):
            (noisy.loss(model, (x[8 * k :][:8], y[8 * k :][:8])) / 2).backward()
            recorder.after_backward((x[:8], y[:8]))
        optimizer.step()
        recorder.after_step((x[:8], y[:8]))
        for k in range(2):  # the gradient of before is still in there
            (noisy.loss(model, (x[8 * k + 16 :][:8], y[8 * k + 16 :][:8])) / 2).backward()
            recorder.after_backward((x[:8], y[:8]))
        optimizer.step()
        recorder.after_step((x[:8], y[:8]))
    run = spool()
    assert [m.status for _, m in run.all("noise_trace")] == ["ok", "undetermined"]
    assert "does not add up to the gradient" in run.all("noise_trace")[-1][1].reason


def test_sparse_gradients_fall_back_to_cutting_batches(spool):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def loss(model, batch):
        return model(batch).square().mean()

    with Recorder(model, optimizer, loss, [GradientNoiseScale(every(1))], sink=spool.url, accumulation=2) as recorder:
        for _ in range(6):
            optimizer.zero_grad()
            for _ in range(2):
                batch = torch.randint(0, 9, (8,))
                (loss(model, batch) / 2).backward()
                recorder.after_backward(batch)
            optimizer.step()
            recorder.after_step(batch)
    run = spool()
    assert [m.method for _, m in run.all("noise_trace")] == ["split_batch_in_4"] * 3
    assert not run.of_kind("probe_failed")
    notices = [event.message for event in run.of_kind("probe_notice")]
    assert any("0.weight is sparse" in message for message in notices), notices


def test_a_parameter_added_in_mid_run(spool, noisy):
    model, x, y = noisy.task()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    extra = nn.Linear(6, 1)

    def loss(model, batch):
        more = extra(batch[0]) if hasattr(model, "extra") else 0.0
        return (model(batch[0]) + more - batch[1]).square().mean()

    probes = [GradientNoiseScale(every(1))]
    with Recorder(model, optimizer, loss, probes, sink=spool.url, accumulation=2, strict=True) as recorder:
        for step in range(4):
            if step == 2:
                model.extra = extra
                model.forward = lambda x: model[2](model[1](model[0](x)))
                optimizer.add_param_group({"params": list(extra.parameters())})
            optimizer.zero_grad()
            for k in range(2):
                batch = (x[8 * k :][:8], y[8 * k :][:8])
                (loss(model, batch) / 2).backward()
                recorder.after_backward(batch)
            optimizer.step()
            recorder.after_step(batch)
    run = spool()
    assert list(run.values("noise_trace")) == [0, 1, 3], "not where it was added after the watch began"
    assert "extra" in {m.scope for frame in run.frames for m in frame.measurements}
