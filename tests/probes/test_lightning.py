"""`MechanicsMonitor` in Lightning: right numbers at right steps, checkpoints, endings, and both packages."""

import copy
import io
import logging
import math
import warnings

import lightning.pytorch as lp
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from learnmech.probes import BaseProbe, GradientNoiseScale, Sharpness, Vitals, WeightDynamics, every
from learnmech.probes.lightning import MechanicsMonitor

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Quartic(pl.LightningModule):
    """L(w) = s sum w^4 / 12 with s the mean of the batch: H = s diag(w^2)."""

    def __init__(self, lr=0.05, optimizer="SGD", step_size=100, **settings):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, -2.0, 1.5]))
        self.lr, self.optimizer, self.step_size, self.settings = lr, optimizer, step_size, settings
        self.weights = []

    def loss_of(self, batch):
        return batch[0].mean() * self.w.pow(4).sum() / 12

    def on_train_batch_start(self, batch, batch_idx):
        self.weights.append((self.global_step, self.w.detach().clone(), float(batch[0].mean())))

    def training_step(self, batch, batch_idx):
        return self.loss_of(batch)

    def configure_optimizers(self):
        optimizer = getattr(torch.optim, self.optimizer)(self.parameters(), lr=self.lr, **self.settings)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, self.step_size, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def data(examples=12, batch=3, **settings):
    generator = torch.Generator().manual_seed(0)
    x = 1 + 0.1 * torch.randn(examples, 1, generator=generator)
    return DataLoader(TensorDataset(x), batch_size=batch, **settings)


def trainer_of(package=pl, callbacks=(), **settings):
    settings = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    } | settings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return package.Trainer(callbacks=callbacks, **settings)


def fit(trainer, module, loader=None, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, loader or data(), **settings)
    return module


@pytest.fixture
def spool(tmp_path, recorded):
    """`spool.url` for a monitor, `spool()` for what it recorded."""

    class Spool:
        url = f"spool:{tmp_path}/spool"

        def __call__(self):
            return recorded(tmp_path / "spool")

    return Spool()


# --- right numbers at right steps -------------------------------------------------------------------------------------


def test_sharpness_is_the_closed_form_of_the_batch_about_to_be_used(spool):
    monitor = MechanicsMonitor([Sharpness(every(1), tol=1e-5)], sink=spool.url)
    module = fit(trainer_of(callbacks=monitor), Quartic())
    run = spool()
    assert list(run.values("sharpness")) == [2, 3, 4, 5, 6, 7], "not before step 1, which makes the self-test"
    for step, weight, scale in module.weights:
        if step >= 2:
            assert run.values("sharpness")[step] == pytest.approx(scale * float(weight.square().max()), rel=1e-4)
    (event,) = run.of_kind("self_test")
    assert event.step == 1
    assert event.data["error"] < 1e-6


def test_the_training_makes_its_first_step_alone(spool):
    """Kernels are chosen and memory is laid out by the first step: no probe comes before it, whatever the budget."""
    fit(trainer_of(callbacks=MechanicsMonitor([Sharpness()], sink=spool.url, budget=1.0)), Quartic())
    run = spool()
    assert run.of_kind("self_test")[0].step == 1
    assert min(run.values("sharpness")) == 2


def test_the_replay_runs_in_the_precision_of_the_training(spool):
    class Autocast(Quartic):
        def loss_of(self, batch):
            if not torch.is_autocast_enabled("cpu"):
                raise RuntimeError("outside of autocast")
            return super().loss_of(batch)

    fit(
        trainer_of(callbacks=MechanicsMonitor([Sharpness(every(1))], sink=spool.url), precision="bf16-mixed"),
        Autocast(),
    )
    assert not spool().of_kind("probe_failed")
    assert len(spool().values("sharpness")) == 6


def test_loss_gradient_and_learning_rate_are_those_of_the_update(spool):
    monitor = MechanicsMonitor([Vitals(every(1)), WeightDynamics(every(1))], sink=spool.url)
    module = fit(trainer_of(callbacks=monitor, gradient_clip_val=0.01), Quartic(step_size=3))
    run = spool()
    assert run.values("learning_rate") == {0: 0.05, 3: 0.025, 6: 0.0125}
    for step, weight, scale in module.weights:
        assert run.values("loss")[step] == pytest.approx(scale * float(weight.pow(4).sum()) / 12, rel=1e-5)
        gradient = scale * weight**3 / 3
        assert run.values("grad_norm")[step] == pytest.approx(float(gradient.norm()), rel=1e-5), "before clipping"
        assert run.values("weight_norm")[step] == pytest.approx(float(weight.norm()), rel=1e-6)
        assert run.values("update_norm")[step] == pytest.approx(0.01 * run_lr(run, step), rel=1e-3), "after clipping"
    assert run.context["gradient_clip"] == 0.01
    assert run.values("batch_size") == {0: 3.0}
    assert run.values("dataset_size") == {0: 12.0}
    assert run.values("full_batch") == {0: 0.0}
    assert run.context["framework"] == "lightning"


def run_lr(run, step):
    return [value for at, value in run.values("learning_rate").items() if at <= step][-1]


def test_accumulation_counts_updates(spool):
    """Five batches an epoch, three to an update: the last update of an epoch has two micro-batches."""
    probes = [Vitals(every(1)), Sharpness(every(1)), GradientNoiseScale(every(1)), WeightDynamics(every(1))]
    monitor = MechanicsMonitor(probes, sink=spool.url)
    module = Quartic()
    fit(trainer_of(callbacks=monitor, accumulate_grad_batches=3, max_epochs=3), module, data(15, 3))
    run = spool()
    assert list(run.values("loss")) == [0, 1, 2, 3, 4, 5]
    assert list(run.values("accumulation").items())[:3] == [(0, 3.0), (1, 2.0), (2, 3.0)]
    assert list(run.values("batch_size").items())[:3] == [(0, 9.0), (1, 6.0), (2, 9.0)]
    assert list(run.values("sharpness")) == [2, 3, 4, 5]
    assert run.of_kind("self_test")[0].data["error"] < 1e-6
    scales = {}
    for step, weight, scale in module.weights:
        scales.setdefault(step, (weight, []))[1].append(scale)
    for step, (weight, found) in scales.items():
        loss = sum(found) / len(found) * float(weight.pow(4).sum()) / 12
        assert run.values("loss")[step] == pytest.approx(loss, rel=1e-5)
        gradient = sum(found) / 3 * weight**3 / 3  # Lightning divides by three whatever there is
        assert run.values("grad_norm")[step] == pytest.approx(float(gradient.norm()), rel=1e-5)
    assert run.frames[-1].samples == 45


def test_a_loss_scale_is_taken_out(spool):
    """float16 on the CPU with a real GradScaler: gradients in the hooks are 65536 times too large."""
    probes = [Vitals(every(1)), Sharpness(every(2))]
    monitor = MechanicsMonitor(probes, sink=spool.url)
    plugin = pl.plugins.MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))
    module = fit(trainer_of(callbacks=monitor, plugins=[plugin]), Quartic())
    run = spool()
    assert [event.severity for event in run.of_kind("self_test")] == ["info"], run.of_kind("self_test")
    for step, weight, scale in module.weights:
        expected = float((scale * weight**3 / 3).norm())
        assert run.values("grad_norm")[step] == pytest.approx(expected, rel=2e-2)
    assert len(run.values("sharpness")) == 3


def test_a_closure_that_is_called_several_times_is_one_update(spool):
    monitor = MechanicsMonitor([Vitals(every(1)), WeightDynamics(every(1))], sink=spool.url)
    module = fit(trainer_of(callbacks=monitor), Quartic(optimizer="LBFGS", max_iter=4))
    run = spool()
    for observable in ("loss", "grad_norm", "update_norm"):
        assert [step for step, _ in run.all(observable)] == list(range(8))
    weights = [weight for _, weight, _ in module.weights] + [module.w.detach()]
    for step in range(8):
        gradient = module.weights[step][2] * weights[step] ** 3 / 3
        assert run.values("grad_norm")[step] == pytest.approx(float(gradient.norm()), rel=1e-5), "at w_t"
        update = float((weights[step + 1] - weights[step]).norm())
        assert run.values("update_norm")[step] == pytest.approx(update, rel=1e-4, abs=1e-7), "of the whole step"


def test_one_batch_an_epoch_is_a_full_batch(spool):
    monitor = MechanicsMonitor([Sharpness(every(1))], sink=spool.url)
    fit(trainer_of(callbacks=monitor, max_epochs=4), Quartic(), data(12, 12, shuffle=True))
    run = spool()
    assert run.values("full_batch") == {0: 1.0}
    assert run.values("deterministic_loss") == {2: 1.0}


def test_one_random_batch_an_epoch_is_none(spool):
    monitor = MechanicsMonitor([], sink=spool.url)
    fit(trainer_of(callbacks=monitor, limit_train_batches=1), Quartic(), data(12, 3, shuffle=True))
    assert spool().values("full_batch") == {0: 0.0}


def test_worker_processes_do_not_disturb(spool):
    monitor = MechanicsMonitor([Sharpness(every(1)), Vitals(every(1))], sink=spool.url)
    module = fit(trainer_of(callbacks=monitor, max_epochs=1), Quartic(), data(num_workers=1))
    plain = fit(trainer_of(max_epochs=1), Quartic(), data(num_workers=1))
    assert torch.equal(module.w, plain.w)
    assert len(spool().values("sharpness")) == 2


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_a_resumed_run_is_the_same_run(spool, tmp_path):
    """Resume with torch's own default `weights_only`: the state holds plain values only."""
    first = MechanicsMonitor([Vitals(every(1))], sink=spool.url)
    trainer = trainer_of(callbacks=first, max_epochs=1)
    fit(trainer, Quartic())
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    saved = torch.load(tmp_path / "c.ckpt", weights_only=True)["callbacks"]["learnmech.MechanicsMonitor"]
    assert {type(value) for value in saved.values()} <= {str, int, float}
    assert saved["step"] == 4

    second = MechanicsMonitor([Vitals(every(1))], sink=spool.url)
    fit(trainer_of(callbacks=second, max_epochs=2), Quartic(), ckpt_path=tmp_path / "c.ckpt")
    run = spool()
    assert run.runs == {first.run_id} == {second.run_id}
    assert run.attempts == [0, 1]
    assert {batch.start_step for batch in run.batches if batch.attempt == 1} == {4}
    assert sorted(step for step, _ in run.all("loss")) == list(range(8))
    assert run.frames[-1].samples == 24 or max(f.samples for f in run.frames) == 24


def test_a_checkpoint_from_the_middle_of_training_resumes_at_its_step(spool, tmp_path):
    saver = pl.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1, filename="{step}")
    first = MechanicsMonitor([Vitals(every(1))], sink=spool.url)
    fit(trainer_of(callbacks=[first, saver], enable_checkpointing=True), Quartic())
    second = MechanicsMonitor([Vitals(every(1))], sink=spool.url)
    fit(trainer_of(callbacks=second), Quartic(), ckpt_path=tmp_path / "step=3.ckpt")
    run = spool()
    assert len(run.runs) == 1
    assert {batch.start_step for batch in run.batches if batch.attempt == 1} == {3}
    again = [
        f.step
        for b in run.batches
        if b.attempt == 1
        for f in b.frames
        for m in f.measurements
        if m.observable == "loss"
    ]
    assert again == [3, 4, 5, 6, 7]


def test_a_monitor_used_twice(spool):
    """The same trainer going on is the same run; another training is another run."""
    monitor = MechanicsMonitor([Vitals(every(1))], sink=spool.url)
    trainer, module = trainer_of(callbacks=monitor, max_epochs=1), Quartic()
    fit(trainer, module)
    first = monitor.run_id
    trainer.fit_loop.max_epochs = 2
    fit(trainer, module)
    assert monitor.run_id == first
    fit(trainer_of(callbacks=monitor, max_epochs=1), Quartic())
    assert monitor.run_id != first
    assert spool().attempts == [0, 1]


def test_copies_and_pickles(spool, picklable):
    monitor = MechanicsMonitor([Sharpness(every(1)), GradientNoiseScale(every(1))], sink=spool.url, run="p")
    fit(trainer_of(callbacks=monitor), Quartic())
    for twin in (picklable(monitor), copy.deepcopy(monitor)):
        assert twin.run_id == monitor.run_id
        assert twin.state_key == "learnmech.MechanicsMonitor[p]"
        fit(trainer_of(callbacks=twin), Quartic())
    buffer = io.BytesIO()
    torch.save(monitor.state_dict(), buffer)
    assert buffer.tell() < 4096


def test_two_monitors_on_one_trainer(spool):
    pair = [MechanicsMonitor([Vitals(every(1))], sink=spool.url, run=name) for name in ("a", "b")]
    fit(trainer_of(callbacks=pair), Quartic())
    assert len(spool().runs) == 2


# --- endings and failures ---------------------------------------------------------------------------------------------


class Failing(BaseProbe):
    default_name = "failing"
    replays = True

    def __init__(self, error):
        super().__init__(every(1))
        self.error = error

    def measure(self, view):
        def work(loss):
            loss(view.batch)
            raise self.error

        return view.isolate(work)


class Normed(Quartic):
    def __init__(self, fails_at=None):
        super().__init__()
        self.norm = nn.BatchNorm1d(1)
        self.fails_at = fails_at

    def loss_of(self, batch):
        if self.global_step == self.fails_at:
            raise LookupError("the user's own error")
        return super().loss_of(batch) + self.norm(batch[0]).square().mean()


def test_an_interruption_inside_a_probe_stops_lightning_as_ever(spool):
    module = Normed()
    with pytest.raises(SystemExit):
        fit(trainer_of(callbacks=MechanicsMonitor([Failing(KeyboardInterrupt())], sink=spool.url)), module)
    assert "log" not in module.__dict__
    assert int(module.norm.num_batches_tracked) == 2
    assert isinstance(module.norm.weight, nn.Parameter)
    assert spool().of_kind("run_failed")[0].message.startswith("KeyboardInterrupt")


def test_the_users_own_error_reaches_the_caller(spool):
    with pytest.raises(LookupError, match="own error"):
        fit(trainer_of(callbacks=MechanicsMonitor([Sharpness(every(1))], sink=spool.url)), Normed(fails_at=4))
    run = spool()
    assert run.kinds()[-1] == "run_failed"
    assert "LookupError" in run.of_kind("run_failed")[0].message
    assert 3 in run.values("sharpness")


def test_an_error_in_the_replay_alone_is_a_refusal_in_the_end(spool):
    """The step raises only while probed: training must not notice, and after three times the replay is given up."""
    from learnmech.probes import is_probing

    class Shy(Quartic):
        def loss_of(self, batch):
            if is_probing():
                raise RuntimeError("not while you look")
            return super().loss_of(batch)

    module = fit(trainer_of(callbacks=MechanicsMonitor([Sharpness(every(1))], sink=spool.url)), Shy())
    assert torch.equal(module.w, fit(trainer_of(), Quartic()).w)
    ((step, m),) = spool().all("sharpness")
    assert (step, m.status) == (3, "unsupported")
    assert "not while you look" in m.reason


def test_a_failing_monitor_leaves_training_alone(spool, monkeypatch):
    """Even a bug of the engine itself costs measurements only."""
    from learnmech.probes.engine import Engine
    from learnmech.probes.facts import Facts

    def broken(self, *args, **kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr(Facts, "changed", broken)
    monkeypatch.setattr(Engine, "_may_replay", broken)
    monitor = MechanicsMonitor([Sharpness(every(1))], sink=spool.url)
    module = fit(trainer_of(callbacks=monitor), Quartic())
    assert torch.equal(module.w, fit(trainer_of(), Quartic()).w)
    with pytest.raises(RuntimeError, match="a bug"):
        fit(trainer_of(callbacks=MechanicsMonitor([], sink=spool.url, strict=True)), Quartic())


def test_a_sink_that_cannot_be_had(spool):
    monitor = MechanicsMonitor([Sharpness(every(1))], sink="nosuch://place")
    module = fit(trainer_of(callbacks=monitor), Quartic())
    assert torch.equal(module.w, fit(trainer_of(), Quartic()).w)


def test_special_modes(spool):
    fit(trainer_of(callbacks=MechanicsMonitor([Sharpness(every(1))], sink=spool.url), fast_dev_run=3), Quartic())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        barebones = pl.Trainer(
            barebones=True, max_epochs=1, accelerator="cpu", callbacks=MechanicsMonitor(sink=spool.url)
        )
    fit(barebones, Quartic())
    with pytest.raises(FileNotFoundError):
        spool()


def test_weights_are_not_those_of_an_average_swapped_in(spool):
    """A callback that swaps an average in for validation and at the end must not be seen in the weight norms."""
    average = pl.callbacks.WeightAveraging(device="cpu", use_buffers=False)
    monitor = MechanicsMonitor([WeightDynamics(every(1))], sink=spool.url)
    module = fit(trainer_of(callbacks=[monitor, average]), Quartic())
    for step, weight, _ in module.weights:
        assert spool().values("weight_norm")[step] == pytest.approx(float(weight.norm()), rel=1e-6)


# --- packages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", [pl, lp], ids=["pytorch_lightning", "lightning.pytorch"])
@pytest.mark.parametrize("bare", [True, False], ids=["bare", "list"])
def test_both_packages_take_the_monitor(package, bare, spool):
    class Module(package.LightningModule):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(2))

        def training_step(self, batch):
            self.log("x", 1.0)
            return batch[0].mean() * self.w.pow(4).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    monitor = MechanicsMonitor([Sharpness(every(1))], sink=spool.url)
    fit(trainer_of(package, monitor if bare else [monitor]), Module())
    run = spool()
    assert len(run.values("sharpness")) == 6
    assert run.context["lightning"] == package.__version__
    assert math.isfinite(run.values("overhead").popitem()[1])
