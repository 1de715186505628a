"""Which run a monitor records to: resumed from checkpoints, used again, copied, and two on one trainer."""

import copy
import io

import pytorch_lightning as pl
import torch

from learnmech.probes import GradientNoiseScale, Sharpness, Vitals, every
from learnmech.probes.lightning import MechanicsMonitor


def test_a_resumed_run_is_the_same_run(tmp_path, quartic, trainer_of, fit, spool):
    """Resume with torch's own default `weights_only`: the state holds plain values only."""
    first = MechanicsMonitor([Vitals(every(1))], sink=spool.url)
    trainer = trainer_of(callbacks=first, max_epochs=1)
    fit(trainer, quartic())
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    saved = torch.load(tmp_path / "c.ckpt", weights_only=True)["callbacks"]["learnmech.MechanicsMonitor"]
    assert {type(value) for value in saved.values()} <= {str, int, float}
    assert saved["step"] == 4

    second = MechanicsMonitor([Vitals(every(1))], sink=spool.url)
    fit(trainer_of(callbacks=second, max_epochs=2), quartic(), ckpt_path=tmp_path / "c.ckpt")
    run = spool()
    assert run.runs == {first.run_id} == {second.run_id}
    assert run.attempts == [0, 1]
    assert {batch.start_step for batch in run.batches if batch.attempt == 1} == {4}
    assert sorted(step for step, _ in run.all("loss")) == list(range(8))
    assert run.frames[-1].samples == 24 or max(f.samples for f in run.frames) == 24


def test_a_checkpoint_from_the_middle_of_training_resumes_at_its_step(tmp_path, quartic, trainer_of, fit, spool):
    saver = pl.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1, filename="{step}")
    first = MechanicsMonitor([Vitals(every(1))], sink=spool.url)
    fit(trainer_of(callbacks=[first, saver], enable_checkpointing=True), quartic())
    second = MechanicsMonitor([Vitals(every(1))], sink=spool.url)
    fit(trainer_of(callbacks=second), quartic(), ckpt_path=tmp_path / "step=3.ckpt")
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


def test_a_monitor_used_twice(quartic, trainer_of, fit, spool):
    """The same trainer going on is the same run; another training is another run."""
    monitor = MechanicsMonitor([Vitals(every(1))], sink=spool.url)
    trainer, module = trainer_of(callbacks=monitor, max_epochs=1), quartic()
    fit(trainer, module)
    first = monitor.run_id
    trainer.fit_loop.max_epochs = 2
    fit(trainer, module)
    assert monitor.run_id == first
    fit(trainer_of(callbacks=monitor, max_epochs=1), quartic())
    assert monitor.run_id != first
    assert spool().attempts == [0, 1]


def test_copies_and_pickles(picklable, quartic, trainer_of, fit, spool):
    monitor = MechanicsMonitor([Sharpness(every(1)), GradientNoiseScale(every(1))], sink=spool.url, run="p")
    fit(trainer_of(callbacks=monitor), quartic())
    for twin in (picklable(monitor), copy.deepcopy(monitor)):
        assert twin.run_id == monitor.run_id
        assert twin.state_key == "learnmech.MechanicsMonitor[p]"
        fit(trainer_of(callbacks=twin), quartic())
    buffer = io.BytesIO()
    torch.save(monitor.state_dict(), buffer)
    assert buffer.tell() < 4096


def test_two_monitors_on_one_trainer(quartic, trainer_of, fit, spool):
    pair = [MechanicsMonitor([Vitals(every(1))], sink=spool.url, run=name) for name in ("a", "b")]
    fit(trainer_of(callbacks=pair), quartic())
    assert len(spool().runs) == 2
