"""The noise from the micro-batches that an update consists of: against all per-example gradients, and under stress."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from learnmech.probes import GradientNoiseScale, Recorder, Vitals, every

EXAMPLES = 2000


def _task(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    x = torch.randn(EXAMPLES, 6, dtype=dtype)
    y = x @ torch.randn(6, 1, dtype=dtype) + torch.randn(EXAMPLES, 1, dtype=dtype)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).to(dtype)
    return model, x, y


def _truth(model, x, y):
    """tr Sigma and |G|^2 from every example's gradient, in each scope."""
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def one(weights, x, y):
        return (functional_call(model, weights, (x[None],)) - y[None]).square().mean()

    each = vmap(grad(one), (None, 0, 0))(weights, x, y)
    flat = {name: g.reshape(len(x), -1).double() for name, g in each.items()}
    scopes = {"": list(flat), "0": [n for n in flat if n[0] == "0"], "2": [n for n in flat if n[0] == "2"]}
    rows = {scope: torch.cat([flat[n] for n in names], dim=1) for scope, names in scopes.items()}
    return {s: (float(r.var(dim=0).sum()), float(r.mean(dim=0).square().sum())) for s, r in rows.items()}


def _loss(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def _train(spool, model, x, y, *, steps, sizes=(16, 16, 16, 16), probes=None, told=True, clip=None, **more):
    """Train with accumulation; mean losses of the micro-batches are averaged as they are, unless `weights` says so."""
    weights = more.pop("weights", [1 / len(sizes)] * len(sizes))
    generator = torch.Generator().manual_seed(5)
    optimizer = torch.optim.SGD(model.parameters(), lr=more.pop("lr", 0.0))
    probes = probes or [GradientNoiseScale(every(1)), Vitals(every(1))]
    with Recorder(model, optimizer, _loss, probes, sink=spool.url, accumulation=len(sizes), **more) as recorder:
        for _ in range(steps):
            optimizer.zero_grad()
            for size, weight in zip(sizes, weights, strict=True):
                chosen = torch.randint(0, EXAMPLES, (size,), generator=generator)
                batch = (x[chosen], y[chosen])
                (_loss(model, batch) * weight).backward()
                if told:
                    recorder.after_backward(batch)
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            recorder.after_step(batch)
    return spool()


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
def test_micro_batches_agree_with_all_per_example_gradients(spool, sizes, weights):
    model, x, y = _task()
    weighted = len(set(weights)) > 1
    probes = [GradientNoiseScale(every(1), weighted=weighted)]
    run = _train(spool, model, x, y, steps=400, sizes=sizes, weights=weights, probes=probes)
    truth = _truth(model, x, y)
    for scope in ("", "0", "2"):
        _consistent(run, truth, scope)
    step, scale = run.all("noise_scale")[-1]
    assert step == 399
    assert abs(scale.value - truth[""][0] / truth[""][1]) < 3 * scale.stderr
    assert {m.method for _, m in run.all("noise_trace")} == {"micro_batches"}


def test_pieces_are_told_apart_without_after_backward(spool):
    model, x, y = _task()
    run = _train(spool, model, x, y, steps=200, told=False)
    values = run.values("noise_scale")
    assert len(values) == 200
    truth = _truth(model, x, y)[""]
    assert values[199] == pytest.approx(truth[0] / truth[1], rel=0.25)


@pytest.fixture
def spools(tmp_path, recorded):
    """`spools()`: one spool after another."""
    names = iter("abcdefgh")

    class Spool:
        def __init__(self):
            self.folder = tmp_path / next(names)
            self.url = f"spool:{self.folder}"

        def __call__(self):
            return recorded(self.folder)

    return Spool


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("factor", [0.5, 1e-3, 1 / 4])
def test_clipping_is_not_counted(spools, told, factor):
    model, x, y = _task()
    plain = _train(spools(), model, x, y, steps=10)
    clip = factor * min(plain.values("grad_norm").values())
    clipped = _train(spools(), model, x, y, steps=10, clip=clip, told=told, gradient_clip=clip)
    for observable in ("noise_trace", "grad_sq_norm"):
        assert clipped.values(observable) == pytest.approx(plain.values(observable), rel=1e-3)


def test_clipping_that_nobody_told_of_is_undetermined(spool):
    model, x, y = _task()
    run = _train(spool, model, x, y, steps=3, clip=0.01, told=False)
    assert {m.status for _, m in run.all("noise_trace")} == {"undetermined"}
    assert "Recorder(gradient_clip=...)" in run.all("noise_trace")[0][1].reason


@pytest.mark.parametrize("told", ["each micro-batch", "after unscale_", "no"])
@pytest.mark.parametrize("clip", [None, 0.3])
def test_a_loss_scale_is_not_counted(spools, told, clip):
    """With a GradScaler the gradients of all micro-batches are scaled, and so is their sum when the last is told of."""
    results = []
    for used in (False, True):
        model, x, y = _task()
        generator = torch.Generator().manual_seed(5)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=used)
        spool = spools()
        probes = [GradientNoiseScale(every(1)), Vitals(every(1))]
        with Recorder(
            model, optimizer, _loss, probes, sink=spool.url, accumulation=2, scaler=scaler, strict=True
        ) as recorder:
            for _ in range(4):
                optimizer.zero_grad()
                for _ in range(2):
                    chosen = torch.randint(0, EXAMPLES, (8,), generator=generator)
                    batch = (x[chosen], y[chosen])
                    scaler.scale(_loss(model, batch) / 2).backward()
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


def test_one_layer_reached_several_times_is_not_taken_for_micro_batches(spool):
    """Two backward passes in each micro-batch, and nothing tells where it ends."""
    model, x, y = _task()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recorder(model, optimizer, _loss, [GradientNoiseScale(every(1))], sink=spool.url, accumulation=2) as recorder:
        for _ in range(6):
            optimizer.zero_grad()
            for batch in ((x[:8], y[:8]), (x[8:16], y[8:16])):
                (_loss(model, batch) / 2).backward()
                (_loss(model, batch) / 4).backward()
            optimizer.step()
            recorder.after_step(batch)
    run = spool()
    assert {m.method for _, m in run.all("noise_trace")} == {"split_batch_in_4"}
    assert any("4 parts where 2 micro-batches" in event.message for event in run.of_kind("probe_notice"))


def test_weights_may_change_their_shape_between_updates(spool):
    """Pruning and offloading replace the data of a parameter while a measurement waits for its backward pass."""
    model, x, y = _task()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recorder(model, optimizer, _loss, [GradientNoiseScale(every(1))], sink=spool.url, accumulation=2) as recorder:
        for step in range(4):
            if step == 2:
                model[0].weight.data, model[0].bias.data = model[0].weight.data[:7], model[0].bias.data[:7]
                model[2].weight.data = model[2].weight.data[:, :7]
            optimizer.zero_grad()
            for k in range(2):
                batch = (x[8 * k :][:8], y[8 * k :][:8])
                (_loss(model, batch) / 2).backward()
                recorder.after_backward(batch)
            optimizer.step()
            recorder.after_step(batch)
    assert list(spool().values("noise_trace")) == [0, 1, 2, 3]


def test_the_budget_measures_what_it_has_decided_on(spool):
    """The cost of watching is charged at once; it must not take back the decision before the update is measured."""
    model, x, y = _task()
    probe = GradientNoiseScale()
    watched = []
    arm = probe.arm
    probe.arm = lambda view: (watched.append(view.step), arm(view))
    run = _train(spool, model, x, y, steps=150, probes=[probe], budget=0.2)
    assert len(watched) >= 3
    assert set(run.values("noise_trace")) == {step for step in watched if step < 150}


def test_updates_get_smaller(spool):
    model, x, y = _task()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recorder(model, optimizer, _loss, [GradientNoiseScale(every(1))], sink=spool.url) as recorder:
        for pieces in (4, 4, 2, 4, 2, 2, 2, 2, 2):
            optimizer.zero_grad()
            for k in range(pieces):
                batch = (x[8 * k :][:8], y[8 * k :][:8])
                (_loss(model, batch) / pieces).backward()
                recorder.after_backward(batch)
            optimizer.step()
            recorder.after_step(batch)
    run = spool()
    measured = [step for step, m in run.all("noise_trace") if m.method == "micro_batches"]
    assert measured == [1, 3, 6, 7, 8]
    assert run.frames[-1].samples == 8 * 24


def test_inputs_that_are_always_zero(spool):
    """Their weights have no gradient: the numbers that are compared must not all be among them."""
    torch.manual_seed(0)
    model = nn.Linear(300, 4, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    probes = [GradientNoiseScale(every(1))]
    with Recorder(model, optimizer, _loss, probes, sink=spool.url, accumulation=2, strict=True) as recorder:
        for _ in range(3):
            optimizer.zero_grad()
            for _ in range(2):
                x = torch.randn(8, 300)
                x[:, :100] = 0.0
                (_loss(model, (x, torch.randn(8, 4))) / 2).backward()
                recorder.after_backward((x, x))
            optimizer.step()
            recorder.after_step((x, x))
    assert [m.status for _, m in spool().all("noise_trace")] == ["ok"] * 3


@pytest.mark.parametrize(("units", "said"), [([1.0], "returned [1.0]"), (-3, "returned -3"), (None, "")])
def test_units_that_are_none(spool, units, said):
    model, x, y = _task()
    probes = [GradientNoiseScale(every(1), units=None if units is None else lambda batch: units)]
    run = _train(spool, model, x, y, steps=5, probes=probes)
    notices = [event.message for event in run.of_kind("probe_notice")]
    assert any(said in message for message in notices) if said else not notices


def test_weights_are_those_of_a_training_without_it(spools, digest):
    ends = []
    for probes in ([GradientNoiseScale(every(1))], [GradientNoiseScale(every(10**6))]):
        model, x, y = _task()
        _train(spools(), model, x, y, steps=5, probes=probes, lr=0.1)
        ends.append(digest(list(model.parameters())))
    assert ends[0] == ends[1]


def test_one_micro_batch_more_or_less_than_usual(spool):
    model, x, y = _task()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recorder(
        model, optimizer, _loss, [GradientNoiseScale(every(1))], sink=spool.url, accumulation=3, strict=True
    ) as recorder:
        for pieces in (3, 3, 1, 3, 2):
            optimizer.zero_grad()
            for _ in range(pieces):
                (_loss(model, (x[:8], y[:8])) / 3).backward()
                recorder.after_backward((x[:8], y[:8]))
            optimizer.step()
            recorder.after_step((x[:8], y[:8]))
    assert list(spool().values("noise_trace")) == [0, 1, 3]


def test_accumulation_is_found_out(spool):
    """Nobody said that updates consist of micro-batches: the first is cut, the others are taken as they come."""
    model, x, y = _task()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recorder(model, optimizer, _loss, [GradientNoiseScale(every(1))], sink=spool.url, strict=True) as recorder:
        for step in range(4):
            optimizer.zero_grad()
            for k in range(2):
                batch = (x[8 * (2 * step + k) :][:8], y[8 * (2 * step + k) :][:8])
                (_loss(model, batch) / 2).backward()
                recorder.after_backward(batch)
            optimizer.step()
            recorder.after_step(batch)
    assert [m.method for _, m in spool().all("noise_trace")] == ["split_batch_in_4", *["micro_batches"] * 3]


@pytest.mark.parametrize(
    ("gradient", "status", "reason"),
    [(0.0, "undetermined", "zero or not finite"), (math.nan, "undetermined", "zero or not finite")],
)
def test_gradients_that_are_zero_or_not_finite(spool, gradient, status, reason):
    model, x, y = _task()
    for p in model.parameters():
        p.register_hook(lambda g: torch.full_like(g, gradient))
    run = _train(spool, model, x, y, steps=2)
    for observable in ("noise_trace", "grad_sq_norm", "noise_scale"):
        for _, m in run.all(observable):
            assert (m.status, m.value) == (status, None)
            assert reason in m.reason


def test_what_does_not_add_up_to_the_gradient_is_void(spool):
    model, x, y = _task()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    probes = [GradientNoiseScale(every(1))]
    with Recorder(model, optimizer, _loss, probes, sink=spool.url, accumulation=2) as recorder:
        for k in range(2):
            (_loss(model, (x[8 * k :][:8], y[8 * k :][:8])) / 2).backward()
            recorder.after_backward((x[:8], y[:8]))
        optimizer.step()
        recorder.after_step((x[:8], y[:8]))
        for k in range(2):  # the gradient of before is still in there
            (_loss(model, (x[8 * k + 16 :][:8], y[8 * k + 16 :][:8])) / 2).backward()
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


def test_a_parameter_added_in_mid_run(spool):
    model, x, y = _task()
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


def test_single_examples_agree_with_all_per_example_gradients(spool):
    model, x, y = _task()
    probes = [GradientNoiseScale(every(1), source="examples")]
    run = _train(spool, model, x, y, steps=401, sizes=(24,), probes=probes)
    assert list(run.values("noise_trace"))[:2] == [1, 2], (
        "from the second update on: the first tells how many there are"
    )
    truth = _truth(model, x, y)
    for scope in ("", "0", "2"):
        _consistent(run, truth, scope)
    assert {m.method for _, m in run.all("noise_trace")} == {"examples"}


def test_examples_of_odd_batches(spools):
    model, x, y = _task()
    probes = [GradientNoiseScale(every(1), source="examples")]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    spool = spools()
    with Recorder(model, optimizer, _loss, probes, sink=spool.url) as recorder:
        for size in (8, 8, 3, 3, 8, 8):
            optimizer.zero_grad()
            _loss(model, (x[:size], y[:size])).backward()
            optimizer.step()
            recorder.after_step((x[:size], y[:size]))
    assert list(spool().values("noise_trace")) == [1, 3, 5]


def test_examples_that_layers_do_not_tell_apart_are_refused_with_the_reason(spool):
    model, x, y = _task()
    model.insert(1, nn.BatchNorm1d(8))
    probes = [GradientNoiseScale(every(1), source="examples")]
    run = _train(spool, model, x, y, steps=6, sizes=(8,), probes=probes)
    (refusal,) = [m for _, m in run.all("noise_trace")]
    assert refusal.status == "unsupported"
    assert "depend on the others of its batch" in refusal.reason
