"""`Recorder` in plain loops: no harm, right numbers at right steps, and no failure that reaches the loop."""

import gc
import math
import weakref

import pytest
import torch
from torch import nn

from learnmech.probes import (
    BaseProbe,
    GradientNoiseScale,
    Moment,
    Recorder,
    Sharpness,
    Vitals,
    WeightDynamics,
    every,
    is_probing,
)
from learnmech.wire import Measurement


def mean_square(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()


def cross_entropy(model, batch):
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)


class Quartic(nn.Module):
    """L(w) = sum w^4 / 12, so that H = diag(w^2): the sharpness is the largest squared weight, another at each step."""

    def __init__(self, values=(1.0, -2.0, 1.5)):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(values, dtype=torch.float64))

    def forward(self, x):
        return self.w.pow(4).sum() / 12 + 0 * x.sum()


def quartic(model, batch):
    return model(batch)


@pytest.fixture
def spool(tmp_path, recorded):
    """`spool.url` for a recorder, `spool()` for what it recorded."""

    class Spool:
        url = f"spool:{tmp_path}/spool"

        def __call__(self):
            return recorded(tmp_path / "spool")

    return Spool()


def mlp():
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3))


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    )


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.inner = nn.Sequential(nn.Linear(4, 8), nn.TransformerEncoder(layer, 1, enable_nested_tensor=False))
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        return self.out(self.inner(x).mean(dim=1))


# --- do no harm -------------------------------------------------------------------------------------------------------


def watched_training(make, shape, digest, training_state, recorder_of=None, steps=8):
    """Train with seeds fixed; hash everything after each backward pass and each step."""
    torch.manual_seed(3)
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)
    recorder = None if recorder_of is None else recorder_of(model, optimizer)
    seen = []
    if recorder is not None:
        recorder.__enter__()
    for _ in range(steps):
        batch = (torch.randn(8, *shape), torch.randint(0, 3, (8,)))
        optimizer.zero_grad()
        loss = cross_entropy(model, batch)
        loss.backward()
        if recorder is not None:
            recorder.after_backward(batch)
        seen.append(digest([training_state(model, [optimizer]), batch, loss]))
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        if recorder is not None:
            recorder.after_step(batch, loss)
        scheduler.step()
        seen.append(digest([training_state(model, [optimizer]), batch, loss]))
    if recorder is not None:
        recorder.close()
    return seen


@pytest.mark.parametrize(
    ("make", "shape"), [(mlp, (5,)), (cnn, (1, 5, 5)), (Transformer, (6, 4))], ids=["mlp", "cnn", "transformer"]
)
def test_training_is_bit_identical(make, shape, digest, training_state, eager_probes, spool):
    plain = watched_training(make, shape, digest, training_state)
    watched = watched_training(
        make, shape, digest, training_state, lambda m, o: Recorder(m, o, cross_entropy, eager_probes(), sink=spool.url)
    )
    assert plain == watched
    run = spool()
    assert len(run.all("sharpness")) == len(run.all("noise_trace")) == len(run.all("weight_norm")) == 8
    assert not run.of_kind("probe_failed")
    # AdamW is adaptive; the loss is random with dropout and not without
    assert len(run.all("sharpness_preconditioned")) == 8
    assert run.values("deterministic_loss") == {1: float(make is cnn)}


class Broken(BaseProbe):
    """Fails in the middle of an evaluation, with state half changed."""

    default_name = "broken"
    observables = ("hessian_trace",)
    replays = True

    def __init__(self, error, **settings):
        super().__init__(every(1), **settings)
        self.error, self.calls = error, 0

    def measure(self, view):
        self.calls += 1

        def work(loss):
            loss(view.batch).backward()
            torch.rand(3)
            raise self.error

        return view.isolate(work)


@pytest.mark.parametrize("error", [ValueError("no"), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_probe_that_always_fails_is_disabled_and_harmless(error, digest, training_state, spool):
    broken = Broken(error)
    plain = watched_training(mlp, (5,), digest, training_state)
    watched = watched_training(
        mlp, (5,), digest, training_state, lambda m, o: Recorder(m, o, cross_entropy, [broken], sink=spool.url)
    )
    assert plain == watched
    assert broken.calls == 3
    run = spool()
    assert [step for step, _ in run.all("hessian_trace")] == [1, 2, 3]
    assert {m.status for _, m in run.all("hessian_trace")} == {"failed"}
    assert type(error).__name__ in run.all("hessian_trace")[0][1].reason
    assert run.kinds().count("probe_failed") == 3
    assert run.kinds().count("probe_disabled") == 1
    assert "raise self.error" in run.of_kind("probe_failed")[0].data["traceback"]


def test_one_success_between_failures_keeps_a_probe_alive(spool):
    class Sometimes(BaseProbe):
        observables = ("user.x",)

        def measure(self, view):
            if view.step % 3:
                raise RuntimeError("not now")
            return [Measurement("user.x", 1.0)]

    _run_quartic([Sometimes(every(1))], spool.url, steps=12)
    assert sorted(step for step, m in spool().all("user.x") if m.status == "ok") == [3, 6, 9, 12]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interruption_passes_and_leaves_the_training_as_it_was(error, digest, training_state, spool):
    torch.manual_seed(0)
    model = cnn()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = (torch.randn(8, 1, 5, 5), torch.randint(0, 3, (8,)))
    before = None

    def train():
        nonlocal before
        with Recorder(model, optimizer, cross_entropy, [Broken(error())], sink=spool.url) as recorder:
            loss = cross_entropy(model, batch)
            loss.backward()
            optimizer.step()
            before = digest(training_state(model, [optimizer]))
            recorder.after_step(batch, loss)

    with pytest.raises(error):
        train()
    assert digest(training_state(model, [optimizer])) == before
    assert not is_probing()
    assert not optimizer._optimizer_step_pre_hooks
    assert spool().of_kind("run_failed")[0].message.startswith(error.__name__)


def test_a_probe_does_not_keep_its_tensors_alive_after_a_failure(spool):
    alive = []

    class Leaky(BaseProbe):
        def measure(self, view):
            tensor = torch.zeros(10)
            alive.append(weakref.ref(tensor))
            raise RuntimeError("with a traceback that refers to the tensor")

    _run_quartic([Leaky(every(1))], spool.url, steps=2)
    gc.collect()
    assert [reference() for reference in alive] == [None, None]


def test_strict_raises(spool):
    with pytest.raises(ValueError, match="no"):
        _run_quartic([Broken(ValueError("no"))], spool.url, strict=True)


@pytest.mark.parametrize("sink", ["nosuch://place", "http://127.0.0.1:9", "sqlite:////proc/cannot/be.db", "rubbish"])
def test_a_sink_that_cannot_be_had_costs_nothing_but_the_measurements(sink):
    model = Quartic()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    recorder = Recorder(model, optimizer, quartic, [Sharpness(every(2))], sink=sink).__enter__()
    for _ in range(4):
        optimizer.zero_grad()
        quartic(model, torch.zeros(1)).backward()
        optimizer.step()
        recorder.after_step(torch.zeros(1))
    recorder.close(timeout=0.1)
    assert recorder.step == 4
    assert float(model.w.detach().abs().max()) < 2.0


# --- right numbers at right steps -------------------------------------------------------------------------------------


def _run_quartic(probes, sink, steps=5, lr=0.05, after_backward=True, scheduler=None, **settings):
    """Descend the quartic; return w_0 ... w_steps."""
    model = Quartic()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    schedule = None if scheduler is None else scheduler(optimizer)
    batch, weights = torch.zeros(4, 1), [model.w.detach().clone()]
    with Recorder(model, optimizer, quartic, probes, sink=sink, **settings) as recorder:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = quartic(model, batch)
            loss.backward()
            if after_backward:
                recorder.after_backward(batch)
            optimizer.step()
            if schedule is not None:
                schedule.step()
            recorder.after_step(batch, loss)
            weights.append(model.w.detach().clone())
    return weights


def test_sharpness_is_the_closed_form_at_its_step(spool):
    weights = _run_quartic([Sharpness(every(2))], spool.url, steps=7)
    run = spool()
    assert list(run.values("sharpness")) == [2, 4, 6]
    for step, m in run.all("sharpness"):
        assert m.value == pytest.approx(float(weights[step].square().max()), rel=1e-6)
        assert m.status == "ok"
        assert 0 <= m.stderr < 1e-3 * m.value
        assert m.cost > 0
    assert run.values("deterministic_loss") == {2: 1.0}
    assert run.all("probe_cost", "sharpness")


def test_preconditioned_sharpness_uses_the_optimizer_at_the_same_step(spool):
    """P_t of Adam is computed here from the gradients alone: g_t = w^3/3, v_t their exponential average."""
    model = Quartic()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.9, 0.99), eps=1e-8)
    batch, v, expected = torch.zeros(4, 1), torch.zeros(3, dtype=torch.float64), {}
    with Recorder(model, optimizer, quartic, [Sharpness(every(1), tol=1e-6)], sink=spool.url) as recorder:
        for step in range(1, 5):
            optimizer.zero_grad()
            loss = quartic(model, batch)
            loss.backward()
            v = 0.99 * v + 0.01 * (model.w.detach() ** 3 / 3) ** 2
            optimizer.step()
            recorder.after_step(batch, loss)
            scale = (1 - 0.9**step) * ((v / (1 - 0.99**step)).sqrt() + 1e-8)
            expected[step] = float((model.w.detach().square() / scale).max())
    found = spool().values("sharpness_preconditioned")
    assert found == pytest.approx(expected, rel=1e-5)


def test_norms_updates_and_angles_are_right_at_their_step(spool):
    class Matrix(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
            self.b = nn.Parameter(torch.tensor([12.0]))

        def forward(self, x):
            return (self.w * torch.tensor([[0.0, 1.0], [1.0, 0.0]])).sum() + self.b.sum() + 0 * x.sum()

    model = Matrix()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    seen = [[p.detach().clone() for p in model.parameters()]]
    with Recorder(model, optimizer, quartic, [WeightDynamics(every(1))], sink=spool.url) as recorder:
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(torch.zeros(2))
            loss.backward()
            optimizer.step()
            recorder.after_step(torch.zeros(2), loss)
            seen.append([p.detach().clone() for p in model.parameters()])
    run = spool()
    assert run.values("weight_norm")[0] == pytest.approx(13.0)
    for step in range(3):
        w, after = (torch.cat([p.reshape(-1) for p in seen[at]]).double() for at in (step, step + 1))
        assert run.values("weight_norm")[step] == pytest.approx(float(w.norm()))
        assert run.values("weight_norm_sq")[step] == pytest.approx(float(w.square().sum()))
        assert run.values("update_norm")[step] == pytest.approx(float((after - w).norm()))
        assert run.values("relative_update")[step] == pytest.approx(float((after - w).norm() / w.norm()))
        w, after = (seen[at][0].reshape(-1).double() for at in (step, step + 1))
        cosine = float(w @ after / w.norm() / after.norm())
        assert run.values("angular_update", "w")[step] == pytest.approx(math.acos(cosine), rel=1e-6)
        g = torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
        invariance = float((w @ g).abs() / w.norm() / g.norm())
        assert run.values("scale_invariance", "w")[step] == pytest.approx(invariance, abs=1e-12)
    assert not run.all("weight_norm", "b"), "tensors with one dimension are not measured one by one"


def test_scale_invariant_tensors_are_certified_and_summarized(spool):
    """A linear layer before a layer norm without affine part: the loss does not change with the scale of its weight."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 8, bias=False), nn.LayerNorm(8, eps=0.0, elementwise_affine=False), nn.Linear(8, 3)
    )
    optimizer = torch.optim.AdamW(
        [
            {"params": model[0].parameters(), "weight_decay": 0.1},
            {"params": model[2].parameters(), "weight_decay": 0.2},
        ],
        lr=1e-2,
    )
    with Recorder(model, optimizer, cross_entropy, [WeightDynamics(every(1))], sink=spool.url) as recorder:
        for _ in range(8):
            batch = (torch.randn(16, 6), torch.randint(0, 3, (16,)))
            optimizer.zero_grad()
            loss = cross_entropy(model, batch)
            loss.backward()
            recorder.after_backward(batch)
            optimizer.step()
            recorder.after_step(batch, loss)
    run = spool()
    assert list(run.values("angular_update", "scale_invariant")) == [4, 5, 6, 7], "five looks before the first"
    for step, value in run.values("angular_update", "scale_invariant").items():
        assert value == pytest.approx(run.values("angular_update", "0.weight")[step])
    assert max(run.values("scale_invariance", "0.weight").values()) < 1e-4
    assert min(run.values("scale_invariance", "2.weight").values()) > 1e-3
    # groups differ, so the decay of the group is said in its own scope, which laws look at first
    (_, decay), *_ = run.all("weight_decay")
    assert decay.value is None
    assert decay.status == "unsupported"
    assert run.values("weight_decay", "0.weight") == {0: 0.1}
    assert run.values("weight_decay", "2.weight") == {0: 0.2}
    assert run.values("weight_decay", "scale_invariant") == {4: 0.1}
    assert run.values("learning_rate") == {0: 0.01}


@pytest.mark.parametrize("after_backward", [True, False])
def test_hyperparameters_are_those_of_the_update(after_backward, spool):
    """The scheduler steps before `after_step`: the group already holds the next learning rate then."""
    _run_quartic(
        [Vitals(every(1))],
        spool.url,
        steps=6,
        lr=0.1,
        after_backward=after_backward,
        scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 3, 0.5),
    )
    run = spool()
    assert run.values("learning_rate") == {0: 0.1, 3: 0.05}
    assert run.values("momentum") == {0: 0.0}
    assert run.values("decoupled_weight_decay") == {0: 0.0}
    assert run.context["optimizer"] == "SGD"


def test_loss_and_gradient_norm_are_those_of_the_update(spool):
    weights = _run_quartic([Vitals(every(1))], spool.url, steps=4)
    run = spool()
    for step in range(4):
        assert run.values("loss")[step] == pytest.approx(float(weights[step].pow(4).sum() / 12))
        assert run.values("grad_norm")[step] == pytest.approx(float((weights[step] ** 3 / 3).norm()))
    assert run.all("grad_norm")[0][1].method == ""


def test_without_after_backward_the_gradient_is_seen_at_the_step(spool):
    weights = _run_quartic([Vitals(every(1))], spool.url, steps=3, after_backward=False)
    run = spool()
    assert run.values("grad_norm")[2] == pytest.approx(float((weights[2] ** 3 / 3).norm()))
    assert {m.method for _, m in run.all("grad_norm")} == {"at_step"}


def test_gradient_is_seen_before_clipping(spool):
    model = Quartic()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, quartic, [Vitals(every(1))], sink=spool.url) as recorder:
        loss = quartic(model, torch.zeros(1))
        loss.backward()
        recorder.after_backward(torch.zeros(1))
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()
        recorder.after_step(torch.zeros(1), loss)
    assert spool().values("grad_norm")[0] == pytest.approx(float((Quartic().w.detach() ** 3 / 3).norm()))


def test_accumulated_micro_batches_make_one_step(spool):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = [(torch.randn(size, 2), torch.randn(size, 1)) for size in (8, 8, 3, 5, 5, 5)]
    probes = [Vitals(every(1)), WeightDynamics(every(1))]
    norms = []
    with Recorder(model, optimizer, mean_square, probes, sink=spool.url) as recorder:
        for window in (data[:3], data[3:]):
            optimizer.zero_grad()
            for batch in window:
                (mean_square(model, batch) / 3).backward()
                recorder.after_backward(batch)
            norms.append(math.hypot(*(float(p.grad.norm()) for p in model.parameters())))
            optimizer.step()
            recorder.after_step(window[-1])
    run = spool()
    assert run.values("batch_size") == {0: 19.0, 1: 15.0}
    assert run.values("accumulation") == {0: 3.0}
    assert run.values("full_batch") == {0: 0.0}
    assert list(run.values("grad_norm").values()) == pytest.approx(norms)
    assert [step for step, _ in run.all("update_norm")] == [0, 1]
    assert run.frames[-1].samples == 34


def test_an_optimizer_with_a_closure_counts_as_one_step(spool):
    model = Quartic()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    batch = torch.zeros(1)

    def closure():
        optimizer.zero_grad()
        loss = quartic(model, batch)
        loss.backward()
        return loss

    with Recorder(model, optimizer, quartic, [Vitals(every(1)), WeightDynamics(every(1))], sink=spool.url) as recorder:
        for _ in range(3):
            recorder.after_step(batch, optimizer.step(closure))
    run = spool()
    assert [step for step, _ in run.all("loss")] == [0, 1, 2]
    assert [step for step, _ in run.all("update_norm")] == [0, 1, 2]
    assert not run.all("grad_norm"), "the gradient at the beginning of the step is not that of the step"


def test_an_optimizer_without_hooks_is_measured_all_the_same(spool):
    class Plain:
        """Duck-typed: has groups and state, knows no hooks."""

        def __init__(self, parameters):
            self.param_groups, self.state = [{"params": list(parameters), "lr": 0.1}], {}

        def step(self):
            for p in self.param_groups[0]["params"]:
                p.data.add_(p.grad, alpha=-0.1)

    model = Quartic()
    optimizer = Plain(model.parameters())
    with Recorder(model, optimizer, quartic, [Vitals(every(1)), WeightDynamics(every(1))], sink=spool.url) as recorder:
        for _ in range(3):
            model.zero_grad()
            loss = quartic(model, torch.zeros(1))
            loss.backward()
            optimizer.step()
            recorder.after_step(torch.zeros(1), loss)
    run = spool()
    assert [step for step, _ in run.all("update_norm")] == [0, 1, 2]
    assert run.values("learning_rate") == {0: 0.1}
    assert {m.method for _, m in run.all("grad_norm")} == {"at_step"}


def test_after_running_out_of_memory_the_batch_is_taken_in_parts(spool):
    """A loss that only fits two examples while it is probed: the full Hessian is still that of the whole batch."""

    def loss_fn(model, batch):
        if is_probing() and len(batch[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return mean_square(model, batch)

    model = nn.Linear(3, 1, bias=False).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = {}
    with Recorder(model, optimizer, loss_fn, [Sharpness(every(1), tol=1e-6)], sink=spool.url) as recorder:
        for step in range(1, 5):
            x = torch.randn(7, 3, dtype=torch.float64)
            batch = (x, torch.randn(7, 1, dtype=torch.float64))
            optimizer.zero_grad()
            loss_fn(model, batch).backward()
            optimizer.step()
            recorder.after_step(batch)
            expected[step] = float(torch.linalg.eigvalsh(2 * x.T @ x / 7)[-1])
    first, *rest = spool().all("sharpness")
    assert (first[0], first[1].status) == (1, "failed")
    assert [(step, m.method) for step, m in rest] == [(step, "double_backward_in_4_parts") for step in (2, 3, 4)]
    for step, m in rest:
        assert m.value == pytest.approx(expected[step], rel=1e-6)


# --- noise ------------------------------------------------------------------------------------------------------------


def test_noise_agrees_with_all_per_example_gradients(spool):
    """The oracle is the covariance of per-example gradients, computed one by one at weights that do not move."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(2000, 4, generator=generator), torch.randn(2000, 1, generator=generator)
    y = y + x.sum(dim=1, keepdim=True)
    model = nn.Linear(4, 1)
    with torch.no_grad():
        errors = model(x) - y
        gradients = torch.cat([2 * errors * x, 2 * errors], dim=1).double()
        exact_trace = float(gradients.var(dim=0, unbiased=True).sum())
        exact_square = float(gradients.mean(dim=0).square().sum())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with Recorder(model, optimizer, mean_square, [GradientNoiseScale(every(1))], sink=spool.url) as recorder:
        for _ in range(200):
            index = torch.randint(0, 2000, (30,), generator=generator)  # 30 is not a multiple of the pieces
            batch = (x[index], y[index])
            optimizer.zero_grad()
            mean_square(model, batch).backward()
            optimizer.step()
            recorder.after_step(batch)
    run = spool()

    def consistent(observable, exact):
        values = torch.tensor(list(run.values(observable).values()), dtype=torch.float64)
        error = float(values.std() / math.sqrt(len(values)))
        assert abs(float(values.mean()) - exact) < 3 * error, (observable, float(values.mean()), exact, error)
        assert error < 0.1 * exact

    consistent("noise_trace", exact_trace)
    consistent("noise_trace_between", exact_trace)
    consistent("grad_sq_norm", exact_square)
    step, scale = run.all("noise_scale")[-1]
    assert step == 200
    assert abs(scale.value - exact_trace / exact_square) < 3 * scale.stderr
    assert run.all("noise_trace")[-1][1].method == "4_pieces"


def test_a_batch_that_is_the_data_set_has_its_gradient_exactly(spool):
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    batch = (torch.randn(12, 4), torch.randn(12, 1))
    probes = [GradientNoiseScale(every(1))]
    with Recorder(model, optimizer, mean_square, probes, sink=spool.url, dataset_size=12) as recorder:
        mean_square(model, batch).backward()
        exact = sum(float(p.grad.square().sum()) for p in model.parameters())
        optimizer.step()
        recorder.after_step(batch)
    assert spool().values("grad_sq_norm")[1] == pytest.approx(exact, rel=1e-5)


def test_noise_of_a_small_or_odd_batch(spool):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recorder(model, optimizer, mean_square, [GradientNoiseScale(every(1))], sink=spool.url) as recorder:
        for size in (8, 3, 1, 8, 1, 1, 1, 8):
            batch = (torch.randn(size, 2), torch.randn(size, 1))
            optimizer.zero_grad()
            mean_square(model, batch).backward()
            optimizer.step()
            recorder.after_step(batch)
    run = spool()
    measured = [(step, m.method) for step, m in run.all("noise_trace") if m.status == "ok"]
    assert measured == [(1, "4_pieces"), (2, "2_pieces"), (4, "4_pieces")]
    refusal = run.all("noise_trace")[-1]
    assert refusal[0] == 7
    assert refusal[1].status == "unsupported"
    assert "Use larger batches" in refusal[1].reason


def test_batches_that_cannot_be_cut_need_a_split(spool):
    def loss_fn(model, batch):
        return mean_square(model, (batch["x"], batch["y"])) * batch["table"].mean()

    def split(batch, pieces):
        parts = zip(batch["x"].tensor_split(pieces), batch["y"].tensor_split(pieces), strict=True)
        return [{"x": x, "y": y, "table": batch["table"]} for x, y in parts]

    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    probes = [GradientNoiseScale(every(1)), GradientNoiseScale(every(1), split=split, name="split")]
    with Recorder(model, optimizer, loss_fn, probes, sink=spool.url) as recorder:
        for _ in range(3):
            batch = {"x": torch.randn(8, 2), "y": torch.randn(8, 1), "table": torch.ones(5)}
            loss_fn(model, batch).backward()
            optimizer.step()
            recorder.after_step(batch)
    run = spool()
    assert [m.status for _, m in run.all("noise_trace")] == ["unsupported", "ok", "ok", "ok"]
    assert "split=" in run.all("noise_trace")[0][1].reason


# --- what a run says of itself ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batches", "settings", "expected"),
    [
        ("same", {}, {1: 1.0}),
        ("written", {}, {1: 0.0}),
        ("fresh", {}, {1: 0.0}),
        ("fresh", {"full_batch": True}, {0: 1.0}),
        ("same", {"full_batch": False}, {0: 0.0}),
        ("fresh", {"dataset_size": 8}, {0: 1.0}),
        ("fresh", {"dataset_size": 9}, {0: 0.0}),
    ],
)
def test_full_batch_is_found_out(batches, settings, expected, spool):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    batch = (torch.randn(8, 2), torch.randn(8, 1))
    with Recorder(model, optimizer, mean_square, [], sink=spool.url, **settings) as recorder:
        for _ in range(4):
            if batches == "written":
                batch[0].add_(1.0)
            elif batches == "fresh":
                batch = (torch.randn(8, 2), torch.randn(8, 1))
            mean_square(model, batch).backward()
            optimizer.step()
            recorder.after_step(batch)
    run = spool()
    assert run.values("full_batch") == expected
    assert run.values("batch_size") == {0: 8.0}
    assert run.values("dataset_size") == ({0: float(settings["dataset_size"])} if "dataset_size" in settings else {})


def test_a_full_batch_collated_anew_is_not_taken_for_noise(spool):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x, y = torch.randn(8, 2), torch.randn(8, 1)
    with Recorder(model, optimizer, mean_square, [GradientNoiseScale(every(1))], sink=spool.url) as recorder:
        for _ in range(3):
            batch = (x.clone(), y.clone())
            mean_square(model, batch).backward()
            optimizer.step()
            recorder.after_step(batch)
    assert len(spool().all("noise_trace")) == 3
    assert not spool().all("noise_trace_between")


def test_samples_and_tokens_are_counted(spool):
    _run_quartic([Sharpness(every(1)), Vitals(every(1))], spool.url, steps=3, tokens_per_sample=10)
    for frame in spool().frames:
        if frame.measurements:
            assert frame.samples == 4 * frame.step
            assert frame.tokens == 40 * frame.step


def test_a_resumed_run_is_the_same_run(spool):
    torch.manual_seed(0)
    model = Quartic()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def train(recorder, steps):
        with recorder:
            for _ in range(steps):
                optimizer.zero_grad()
                loss = quartic(model, torch.zeros(2))
                loss.backward()
                optimizer.step()
                recorder.after_step(torch.zeros(2), loss)
        return recorder.state_dict()

    first = train(Recorder(model, optimizer, quartic, [Vitals(every(1))], sink=spool.url, run="r"), 3)
    assert {type(value) for value in first.values()} <= {str, int, float}
    second = Recorder(model, optimizer, quartic, [Vitals(every(1))], sink=spool.url, run="r")
    second.load_state_dict(first)
    train(second, 2)
    run = spool()
    assert len(run.runs) == 1
    assert run.attempts == [0, 1]
    assert [step for step, _ in sorted(run.all("loss"))] == [0, 1, 2, 3, 4]
    assert {batch.start_step for batch in run.batches if batch.attempt == 1} == {3}
    assert max(frame.samples for frame in run.frames) == 10
    with second, pytest.raises(RuntimeError, match="before"):
        second.load_state_dict(first)


def test_a_run_has_a_beginning_and_an_end(spool):
    _run_quartic([], spool.url, run="named", project="p", tags={"a": "b"})
    run = spool()
    assert run.kinds()[0] == "run_started"
    assert run.kinds()[-1] == "run_finished"
    info = run.batches[0].run
    assert (info.name, info.project, info.tags) == ("named", "p", {"a": "b"})
    assert info.context["parameters"] == 3
    assert info.context["dtype"] == "float64"
    assert run.values("overhead")


def test_the_default_probes(spool):
    model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recorder(model, optimizer, mean_square, sink=spool.url, budget=1.0) as recorder:
        for _ in range(5):
            batch = (torch.randn(8, 2), torch.randn(8, 1))
            optimizer.zero_grad()
            loss = mean_square(model, batch)
            loss.backward()
            optimizer.step()
            recorder.after_step(batch, loss)
    run = spool()
    names = {m.observable for frame in run.frames for m in frame.measurements}
    assert {"sharpness", "noise_scale", "weight_norm", "angular_update", "loss", "grad_norm", "overhead"} <= names


# --- probes of one's own ----------------------------------------------------------------------------------------------


def test_any_object_with_name_schedule_and_measure_is_a_probe(spool):
    class Own:
        name, schedule = "own", every(2)

        def measure(self, view):
            norm = view.isolate(lambda loss: float(loss(view.batch).detach()))
            return [Measurement("user.loss", norm), Measurement("user.probing", float(is_probing()))]

    weights = _run_quartic([Own()], spool.url, steps=4)
    assert spool().values("user.loss") == pytest.approx({t: float(weights[t].pow(4).sum() / 12) for t in (2, 4)})


def test_an_undeclared_observable_is_a_failure_of_the_probe(spool):
    class Typo(BaseProbe):
        def measure(self, view):
            return [Measurement("sharpnes", 1.0)]

    _run_quartic([Typo(every(1))], spool.url, steps=2)
    assert "did you mean sharpness" in spool().of_kind("probe_failed")[0].message


def test_numbers_that_are_not_finite_are_marked_and_kept(spool):
    class Infinite(BaseProbe):
        moment = Moment.UPDATE

        def measure(self, view):
            view.defer([torch.tensor(math.nan)], lambda numbers: [Measurement("user.late", numbers[0])])
            return [Measurement("user.now", math.inf)]

    _run_quartic([Infinite(every(1))], spool.url, steps=1)
    run = spool()
    assert run.all("user.now")[0][1].status == run.all("user.late")[0][1].status == "non_finite"
    assert run.values("user.now") == {0: math.inf}


def test_a_diverged_training_is_data(spool):
    _run_quartic([Sharpness(every(1)), WeightDynamics(every(1)), Vitals(every(1))], spool.url, steps=12, lr=30.0)
    run = spool()
    assert run.all("sharpness")[-1][1].status == "non_finite"
    assert run.all("loss")[-1][1].status == "non_finite"
    assert not run.of_kind("probe_failed"), run.of_kind("probe_failed")[0].message


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m, o: Recorder(m, o, quartic, [Sharpness]), "the class Sharpness"),
        (lambda m, o: Recorder(m, o, quartic, [Sharpness(), Sharpness()]), "unique names"),
        (lambda m, o: Recorder(m, o, "loss"), "loss_fn is 'loss'"),
        (lambda m, o: Recorder(m, o, quartic, [Sharpness(20)]), r"every\(n\)"),
        (lambda m, o: Recorder(m, o, quartic, budget=2.0), "share of the run's time"),
        (lambda m, o: Recorder(m, o, quartic, accumulation=0), "micro-batches"),
        (lambda m, o: every(0), "expected a whole number"),
        (lambda m, o: Sharpness(tol=2.0), "relative residual"),
        (lambda m, o: GradientNoiseScale(window=1), "2 measurements"),
    ],
)
def test_wrong_arguments_are_said_at_once(make, message):
    model = Quartic()
    with pytest.raises((TypeError, ValueError), match=message):
        make(model, torch.optim.SGD(model.parameters(), lr=0.1))
