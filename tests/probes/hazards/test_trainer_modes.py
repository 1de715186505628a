"""Special ways to run a trainer: measured the same, or not at all, and never disturbed."""

import pytest

MODES = {
    "sanity check": {"num_sanity_val_steps": 2},
    "validation in mid-epoch": {"val_check_interval": 3, "num_sanity_val_steps": 0},
    "few batches": {"limit_train_batches": 6, "max_epochs": 2},
    "a share of the batches": {"limit_train_batches": 0.5, "max_epochs": 2},
    "overfitting": {"overfit_batches": 2, "max_epochs": 4},
    "a number of steps": {"max_epochs": -1, "max_steps": 7},
    "deterministic": {"deterministic": True},
    "anomalies": {"detect_anomaly": True},
    "no logging": {"log_every_n_steps": 0},
    "inference mode off": {"inference_mode": False},
    "clipped by value": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
}


@pytest.mark.parametrize("mode", MODES)
def test_the_training_is_the_same_and_measured(mode, fit, outcome, loader, monitor, spool):
    def validation():
        return loader().dataset and loader()

    plain = fit(validation=validation(), **MODES[mode])
    watched = fit([monitor()], validation=validation(), **MODES[mode])
    assert outcome(plain) == outcome(watched)
    run = spool()
    assert not run.of_kind("probe_failed"), run.of_kind("probe_failed")[0].data["traceback"]
    assert list(run.values("update_norm")) == list(range(plain[1].global_step))
    assert len(run.values("sharpness")) == plain[1].global_step - 2, "from the step after the self-test"
    assert run.kinds()[-1] == "run_finished"


@pytest.mark.parametrize("settings", [{"fast_dev_run": 4}, {"barebones": True}], ids=lambda s: next(iter(s)))
def test_nothing_is_kept_of_a_trial(settings, fit, outcome, monitor, tmp_path):
    if "barebones" in settings:  # refuses what our tests switch off elsewhere
        settings |= dict.fromkeys(
            ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), None
        )
    assert outcome(fit([monitor()], **settings)) == outcome(fit(**settings))
    assert not (tmp_path / "spool").exists()


def test_a_monitor_is_used_for_a_second_fit(fit, outcome, monitor, spool):
    watcher = monitor()
    assert outcome(fit([watcher])) == outcome(fit([watcher])) == outcome(fit())
    assert len(spool().runs) == 2


def test_an_exception_in_the_training_step(fit, outcome, monitor, spool):
    def fails(module):
        if module.global_step == 6:
            raise LookupError("the user's own")

    assert outcome(fit([monitor()], fails, raises=LookupError)) == outcome(fit((), fails, raises=LookupError))
    run = spool()
    assert run.kinds()[-1] == "run_failed"
    assert "LookupError" in run.of_kind("run_failed")[0].message
    assert list(run.values("update_norm")) == list(range(6))


def test_an_error_while_ending_does_not_hide_the_users(fit, monitor, monkeypatch):
    """Hazard 22: whatever goes wrong in `on_exception`, the caller sees the error of the training."""
    from learnmech.probes.engine import Engine

    def fails(module):
        if module.global_step == 3:
            raise LookupError("the user's own")

    def broken(*_, **__):
        raise RuntimeError("ours")

    monkeypatch.setattr(Engine, "finish", broken)
    fit([monitor()], fails, raises=LookupError)


def test_a_gradient_left_over_is_never_taken_for_the_current_one(fit, monitor, spool):
    """Hazard 36: what lies in `.grad` before the backward pass is poisoned; training clears it, and nobody read it."""
    import pytorch_lightning as pl
    import torch

    class Poison(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            for parameter in pl_module.parameters():
                parameter.grad = torch.full_like(parameter, float("nan"))

    fit([Poison(), monitor()])
    run = spool()
    assert len(run.all("grad_norm")) == 10
    assert {m.status for name in ("grad_norm", "noise_trace", "sharpness") for _, m in run.all(name)} <= {
        "ok", "not_converged", "undetermined",
    }  # fmt: skip
