"""A recorder does no harm: training is bit for bit what it is without, and no failure reaches the loop."""

import gc
import weakref

import pytest
import torch
from torch import nn

from learnmech.probes import BaseProbe, Recorder, Sharpness, every, is_probing
from learnmech.wire import Measurement


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


@pytest.fixture
def watched_training(digest, training_state, cross_entropy):
    """Train with seeds fixed; hash everything after each backward pass and each step."""

    def run(make, shape, recorder_of=None, steps=8):
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

    return run


@pytest.mark.parametrize(
    ("make", "shape"), [(mlp, (5,)), (cnn, (1, 5, 5)), (Transformer, (6, 4))], ids=["mlp", "cnn", "transformer"]
)
def test_training_is_bit_identical(make, shape, eager_probes, cross_entropy, watched_training, spool):
    plain = watched_training(make, shape)
    watched = watched_training(make, shape, lambda m, o: Recorder(m, o, cross_entropy, eager_probes(), sink=spool.url))
    assert plain == watched
    run = spool()
    assert len(run.all("sharpness")) == len(run.all("weight_norm")) == 8
    assert len(run.all("noise_trace")) == 8
    assert not run.of_kind("probe_failed")
    # AdamW is adaptive; the loss is random with dropout and not without
    assert len(run.all("sharpness_preconditioned")) == 8
    assert run.values("deterministic_loss") == {0: float(make is cnn)}


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
def test_a_probe_that_always_fails_is_disabled_and_harmless(error, cross_entropy, watched_training, spool):
    broken = Broken(error)
    plain = watched_training(mlp, (5,))
    watched = watched_training(mlp, (5,), lambda m, o: Recorder(m, o, cross_entropy, [broken], sink=spool.url))
    assert plain == watched
    assert broken.calls == 3
    run = spool()
    assert [step for step, _ in run.all("hessian_trace")] == [1, 2, 3]
    assert {m.status for _, m in run.all("hessian_trace")} == {"failed"}
    assert type(error).__name__ in run.all("hessian_trace")[0][1].reason
    assert run.kinds().count("probe_failed") == 3
    assert run.kinds().count("probe_disabled") == 1
    assert "raise self.error" in run.of_kind("probe_failed")[0].data["traceback"]


def test_one_success_between_failures_keeps_a_probe_alive(quartic, spool):
    class Sometimes(BaseProbe):
        observables = ("user.x",)

        def measure(self, view):
            if view.step % 3:
                raise RuntimeError("not now")
            return [Measurement("user.x", 1.0)]

    quartic.descend([Sometimes(every(1))], spool.url, steps=12)
    assert sorted(step for step, m in spool().all("user.x") if m.status == "ok") == [3, 6, 9, 12]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interruption_passes_and_leaves_the_training_as_it_was(error, digest, training_state, cross_entropy, spool):
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


def test_a_probe_does_not_keep_its_tensors_alive_after_a_failure(quartic, spool):
    alive = []

    class Leaky(BaseProbe):
        def measure(self, view):
            tensor = torch.zeros(10)
            alive.append(weakref.ref(tensor))
            raise RuntimeError("with a traceback that refers to the tensor")

    quartic.descend([Leaky(every(1))], spool.url, steps=2)
    gc.collect()
    assert [reference() for reference in alive] == [None, None]


def test_strict_raises(quartic, spool):
    with pytest.raises(ValueError, match="no"):
        quartic.descend([Broken(ValueError("no"))], spool.url, strict=True)


@pytest.mark.parametrize("sink", ["nosuch://place", "http://127.0.0.1:9", "sqlite:////proc/cannot/be.db", "rubbish"])
def test_a_sink_that_cannot_be_had_costs_nothing_but_the_measurements(sink, quartic):
    model = quartic.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    recorder = Recorder(model, optimizer, quartic.loss, [Sharpness(every(2))], sink=sink).__enter__()
    for _ in range(4):
        optimizer.zero_grad()
        quartic.loss(model, torch.zeros(1)).backward()
        optimizer.step()
        recorder.after_step(torch.zeros(1))
    recorder.close(timeout=0.1)
    assert recorder.step == 4
    assert float(model.w.detach().abs().max()) < 2.0
