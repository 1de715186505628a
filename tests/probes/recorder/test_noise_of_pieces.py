"""The noise from the micro-batches of an update, and from its examples: right, whatever is done to gradients."""

import math

import pytest
import torch
from torch import nn

from learnmech.probes import GradientNoiseScale, Recorder, Vitals, every


def _consistent(run, truth, scope=""):
    for observable, exact in zip(("noise_trace", "grad_sq_norm"), truth[scope], strict=True):
        values = torch.tensor(list(run.values(observable, scope).values()), dtype=torch.float64)
        error = float(values.std() / math.sqrt(len(values)))
        assert error < 0.08 * exact
        assert abs(float(values.mean()) - exact) < 3 * error, (observable, scope, float(values.mean()), exact, error)


@pytest.mark.parametrize(
    ("sizes", "weights"),
    [
        ((16, 16, 16, 16), [1 / 4] * 4),
        ((8, 24), [1 / 2, 1 / 2]),
        ((12, 4, 30), [12 / 46, 4 / 46, 30 / 46]),
    ],
)
def test_micro_batches_agree_with_all_per_example_gradients(spool, sizes, weights, noisy):
    model, x, y = noisy.task()
    weighted = len(set(weights)) > 1
    probes = [GradientNoiseScale(every(1), weighted=weighted)]
    run = noisy.train(spool, model, x, y, steps=400, sizes=sizes, weights=weights, probes=probes)
    truth = noisy.truth(model, x, y)
    for scope in ("", "0", "2"):
        _consistent(run, truth, scope)
    step, scale = run.all("noise_scale")[-1]
    assert step == 399
    assert abs(scale.value - truth[""][0] / truth[""][1]) < 3 * scale.stderr
    assert {m.method for _, m in run.all("noise_trace")} == {"micro_batches"}


def test_pieces_are_told_apart_without_after_backward(spool, noisy):
    model, x, y = noisy.task()
    run = noisy.train(spool, model, x, y, steps=200, told=False)
    values = run.values("noise_scale")
    assert len(values) == 200
    truth = noisy.truth(model, x, y)[""]
    assert values[199] == pytest.approx(truth[0] / truth[1], rel=0.25)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("factor", [0.5, 1e-3, 1 / 4])
def test_clipping_is_not_counted(spools, told, factor, noisy):
    model, x, y = noisy.task()
    plain = noisy.train(spools(), model, x, y, steps=10)
    clip = factor * min(plain.values("grad_norm").values())
    clipped = noisy.train(spools(), model, x, y, steps=10, clip=clip, told=told, gradient_clip=clip)
    for observable in ("noise_trace", "grad_sq_norm"):
        assert clipped.values(observable) == pytest.approx(plain.values(observable), rel=1e-3)


def test_clipping_that_nobody_told_of_is_undetermined(spool, noisy):
    model, x, y = noisy.task()
    run = noisy.train(spool, model, x, y, steps=3, clip=0.01, told=False)
    assert {m.status for _, m in run.all("noise_trace")} == {"undetermined"}
    assert "Recorder(gradient_clip=...)" in run.all("noise_trace")[0][1].reason


def test_an_update_that_was_not_clipped_shows_that_there_is_no_loss_scale(spools, noisy):
    """Left out, all of the large gradients would be: what is recorded is what a run without clipping records."""
    model, x, y = noisy.task()
    plain = noisy.train(spools(), model, x, y, steps=30, told=False)
    norms = plain.values("grad_norm")
    clip = 0.999 * sorted(norms.values())[20]
    clipped = noisy.train(spools(), model, x, y, steps=30, clip=clip, told=False)
    first = next(step for step, norm in norms.items() if norm < clip)
    statuses = [m.status for _, m in clipped.all("noise_trace")]
    assert statuses == ["undetermined"] * first + ["ok"] * (30 - first)
    for observable in ("noise_trace", "grad_sq_norm"):
        truth = {step: value for step, value in plain.values(observable).items() if step >= first}
        found = {step: value for step, value in clipped.values(observable).items() if step >= first}
        assert found == pytest.approx(truth, rel=1e-3)


@pytest.mark.parametrize("told", ["each micro-batch", "after unscale_", "no"])
@pytest.mark.parametrize("clip", [None, 0.3])
def test_a_loss_scale_is_not_counted(spools, told, clip, noisy):
    """With a GradScaler the gradients of all micro-batches are scaled, and so is their sum when the last is told of."""
    results = []
    for used in (False, True):
        model, x, y = noisy.task()
        generator = torch.Generator().manual_seed(5)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=used)
        spool = spools()
        probes = [GradientNoiseScale(every(1)), Vitals(every(1))]
        with Recorder(
            model, optimizer, noisy.loss, probes, sink=spool.url, accumulation=2, scaler=scaler, strict=True
        ) as recorder:
            for _ in range(4):
                optimizer.zero_grad()
                for _ in range(2):
                    chosen = torch.randint(0, noisy.examples, (8,), generator=generator)
                    batch = (x[chosen], y[chosen])
                    scaler.scale(noisy.loss(model, batch) / 2).backward()
                    if told == "each micro-batch":
                        recorder.after_backward(batch)
                if clip is not None or told == "after unscale_":
                    scaler.unscale_(optimizer)
                if clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                scaler.step(optimizer)
                scaler.update()
                recorder.after_step(batch)
        results.append(spool())
    plain, scaled = results
    for observable in ("noise_trace", "grad_sq_norm", "grad_norm"):
        assert scaled.values(observable) == pytest.approx(plain.values(observable), rel=1e-3)
    assert {m.status for _, m in plain.all("noise_trace")} == {"ok"}
    assert min(plain.values("noise_trace").values()) > 1.0, "before clipping"


def test_single_examples_agree_with_all_per_example_gradients(spool, noisy):
    model, x, y = noisy.task()
    probes = [GradientNoiseScale(every(1), source="examples")]
    run = noisy.train(spool, model, x, y, steps=401, sizes=(24,), probes=probes)
    assert list(run.values("noise_trace"))[:2] == [1, 2], (
        "from the second update on: the first tells how many there are"
    )
    truth = noisy.truth(model, x, y)
    for scope in ("", "0", "2"):
        _consistent(run, truth, scope)
    assert {m.method for _, m in run.all("noise_trace")} == {"examples"}


def test_examples_under_a_loss_scale_and_clipping(spools, noisy):
    results = []
    for used in (False, True):
        model, x, y = noisy.task()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=used)
        spool = spools()
        probes = [GradientNoiseScale(every(1), source="examples")]
        with Recorder(model, optimizer, noisy.loss, probes, sink=spool.url, scaler=scaler) as recorder:
            for step in range(4):
                batch = (x[8 * step :][:8], y[8 * step :][:8])
                optimizer.zero_grad()
                scaler.scale(noisy.loss(model, batch)).backward()
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 0.3)
                scaler.step(optimizer)
                scaler.update()
                recorder.after_step(batch)
        results.append(spool().values("noise_trace"))
    assert list(results[0]) == [1, 2, 3]
    assert results[1] == pytest.approx(results[0], rel=1e-3)
    assert min(results[0].values()) > 10.0, "before clipping"


def test_examples_of_odd_batches(spools, noisy):
    model, x, y = noisy.task()
    probes = [GradientNoiseScale(every(1), source="examples")]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    spool = spools()
    with Recorder(model, optimizer, noisy.loss, probes, sink=spool.url) as recorder:
        for size in (8, 8, 3, 3, 8, 8):
            optimizer.zero_grad()
            noisy.loss(model, (x[:size], y[:size])).backward()
            optimizer.step()
            recorder.after_step((x[:size], y[:size]))
    assert list(spool().values("noise_trace")) == [1, 3, 5]


def test_examples_that_layers_do_not_tell_apart_are_refused_with_the_reason(spool, noisy):
    model, x, y = noisy.task()
    model.insert(1, nn.BatchNorm1d(8))
    probes = [GradientNoiseScale(every(1), source="examples")]
    run = noisy.train(spool, model, x, y, steps=6, sizes=(8,), probes=probes)
    (refusal,) = [m for _, m in run.all("noise_trace")]
    assert refusal.status == "unsupported"
    assert "depend on the others of its batch" in refusal.reason


@pytest.mark.parametrize(("weights", "declared"), [((12 / 46, 4 / 46, 30 / 46), False), ((1 / 3, 1 / 3, 1 / 3), True)])
def test_micro_batches_that_are_not_weighed_as_declared(spool, weights, declared, noisy):
    model, x, y = noisy.task()
    probes = [GradientNoiseScale(every(1), weighted=declared)]
    run = noisy.train(spool, model, x, y, steps=40, sizes=(12, 4, 30), weights=weights, probes=probes)
    last = [m for _, m in run.all("noise_trace")][-1]
    assert (last.status, last.value) == ("undetermined", None)
    assert "weighted=True" in last.reason
    assert ("leave out" in last.reason) == declared
