"""`MechanicsMonitor` in Lightning: right numbers at right steps."""

import pytest
import pytorch_lightning as pl
import torch

from learnmech.probes import GradientNoiseScale, Sharpness, Vitals, WeightDynamics, every
from learnmech.probes.lightning import MechanicsMonitor


def test_sharpness_is_the_closed_form_of_the_batch_about_to_be_used(quartic, trainer_of, fit, spool):
    monitor = MechanicsMonitor([Sharpness(every(1), tol=1e-5)], sink=spool.url)
    module = fit(trainer_of(callbacks=monitor), quartic())
    run = spool()
    assert list(run.values("sharpness")) == [2, 3, 4, 5, 6, 7], "not before step 1, which makes the self-test"
    for step, weight, scale in module.weights:
        if step >= 2:
            assert run.values("sharpness")[step] == pytest.approx(scale * float(weight.square().max()), rel=1e-4)
    (event,) = run.of_kind("self_test")
    assert event.step == 1
    assert event.data["error"] < 1e-6


def test_the_training_makes_its_first_step_alone(quartic, trainer_of, fit, spool):
    """Kernels are chosen and memory is laid out by the first step: no probe comes before it, whatever the budget."""
    fit(trainer_of(callbacks=MechanicsMonitor([Sharpness()], sink=spool.url, budget=1.0)), quartic())
    run = spool()
    assert run.of_kind("self_test")[0].step == 1
    assert min(run.values("sharpness")) == 2


def test_the_replay_runs_in_the_precision_of_the_training(quartic, trainer_of, fit, spool):
    class Autocast(quartic):
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


def test_loss_gradient_and_learning_rate_are_those_of_the_update(quartic, trainer_of, fit, spool):
    monitor = MechanicsMonitor([Vitals(every(1)), WeightDynamics(every(1))], sink=spool.url)
    module = fit(trainer_of(callbacks=monitor, gradient_clip_val=0.01), quartic(step_size=3))
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


def test_accumulation_counts_updates(quartic, data, trainer_of, fit, spool):
    """Five batches an epoch, three to an update: the last update of an epoch has two micro-batches."""
    probes = [Vitals(every(1)), Sharpness(every(1)), GradientNoiseScale(every(1)), WeightDynamics(every(1))]
    monitor = MechanicsMonitor(probes, sink=spool.url)
    module = quartic()
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


def test_a_loss_scale_is_taken_out(quartic, trainer_of, fit, spool):
    """float16 on the CPU with a real GradScaler: gradients in the hooks are 65536 times too large."""
    probes = [Vitals(every(1)), Sharpness(every(2))]
    monitor = MechanicsMonitor(probes, sink=spool.url)
    plugin = pl.plugins.MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))
    module = fit(trainer_of(callbacks=monitor, plugins=[plugin]), quartic())
    run = spool()
    assert [event.severity for event in run.of_kind("self_test")] == ["info"], run.of_kind("self_test")
    for step, weight, scale in module.weights:
        expected = float((scale * weight**3 / 3).norm())
        assert run.values("grad_norm")[step] == pytest.approx(expected, rel=2e-2)
    assert len(run.values("sharpness")) == 3


def test_a_closure_that_is_called_several_times_is_one_update(quartic, trainer_of, fit, spool):
    monitor = MechanicsMonitor([Vitals(every(1)), WeightDynamics(every(1))], sink=spool.url)
    module = fit(trainer_of(callbacks=monitor), quartic(optimizer="LBFGS", max_iter=4))
    run = spool()
    for observable in ("loss", "grad_norm", "update_norm"):
        assert [step for step, _ in run.all(observable)] == list(range(8))
    weights = [weight for _, weight, _ in module.weights] + [module.w.detach()]
    for step in range(8):
        gradient = module.weights[step][2] * weights[step] ** 3 / 3
        assert run.values("grad_norm")[step] == pytest.approx(float(gradient.norm()), rel=1e-5), "at w_t"
        update = float((weights[step + 1] - weights[step]).norm())
        assert run.values("update_norm")[step] == pytest.approx(update, rel=1e-4, abs=1e-7), "of the whole step"


def test_one_batch_an_epoch_is_a_full_batch(quartic, data, trainer_of, fit, spool):
    monitor = MechanicsMonitor([Sharpness(every(1))], sink=spool.url)
    fit(trainer_of(callbacks=monitor, max_epochs=4), quartic(), data(12, 12, shuffle=True))
    run = spool()
    assert run.values("full_batch") == {0: 1.0}
    assert run.values("deterministic_loss") == {2: 1.0}


def test_one_random_batch_an_epoch_is_none(quartic, data, trainer_of, fit, spool):
    monitor = MechanicsMonitor([], sink=spool.url)
    fit(trainer_of(callbacks=monitor, limit_train_batches=1), quartic(), data(12, 3, shuffle=True))
    assert spool().values("full_batch") == {0: 0.0}


def test_worker_processes_do_not_disturb(quartic, data, trainer_of, fit, spool):
    monitor = MechanicsMonitor([Sharpness(every(1)), Vitals(every(1))], sink=spool.url)
    module = fit(trainer_of(callbacks=monitor, max_epochs=1), quartic(), data(num_workers=1))
    plain = fit(trainer_of(max_epochs=1), quartic(), data(num_workers=1))
    assert torch.equal(module.w, plain.w)
    assert len(spool().values("sharpness")) == 2


def test_weights_are_not_those_of_an_average_swapped_in(quartic, trainer_of, fit, spool):
    """A callback that swaps an average in for validation and at the end must not be seen in the weight norms."""
    average = pl.callbacks.WeightAveraging(device="cpu", use_buffers=False)
    monitor = MechanicsMonitor([WeightDynamics(every(1))], sink=spool.url)
    module = fit(trainer_of(callbacks=[monitor, average]), quartic())
    for step, weight, _ in module.weights:
        assert spool().values("weight_norm")[step] == pytest.approx(float(weight.norm()), rel=1e-6)
