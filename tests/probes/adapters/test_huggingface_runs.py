"""How runs under the Trainer of transformers begin again, go on and end."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from learnmech.probes import Recorder, Vitals, every
from learnmech.probes.huggingface import MechanicsCallback

STEPS = 6


@pytest.mark.parametrize("restores", [False, True])
def test_a_resumed_run_is_the_same_run(restores, hugging, spool):
    settings = {"save_strategy": "steps", "save_steps": 3, "restore_callback_states_from_checkpoint": restores}
    for resumes in (None, str(hugging.folder / "checkpoint-3")):
        callback = MechanicsCallback([Vitals(every(1))], sink=spool.url, run="one", strict=True)
        hugging.trainer(callback, **settings).train(resume_from_checkpoint=resumes)
    run = spool()
    assert len(run.runs) == 1
    assert run.attempts == [0, 1]
    first, second = (
        {
            f.step: (m.value, f.samples)
            for b in run.batches
            if b.attempt == n
            for f in b.frames
            for m in f.measurements
            if m.observable == "loss"
        }
        for n in run.attempts
    )
    assert (list(first), list(second)) == ([0, 1, 2, 3, 4, 5], [3, 4, 5])
    assert second == {step: first[step] for step in second}


def test_training_again_is_another_run(hugging, spool):
    trainer = hugging.trainer(MechanicsCallback([Vitals(every(1))], sink=spool.url, strict=True))
    trainer.train()
    trainer.train()
    run = spool()
    assert len(run.runs) == 2
    assert run.kinds() == ["run_started", "run_finished"] * 2


def test_an_exception_in_a_step_fails_the_run_and_passes(hugging, spool):
    model = hugging.model()
    trainer = hugging.trainer(MechanicsCallback([Vitals(every(1))], sink=spool.url), model=model)
    calls = iter(range(10))

    def breaks(*_):
        if next(calls) == 3:
            raise ZeroDivisionError("in the model")

    model.lm_head.register_forward_pre_hook(breaks)
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    run = spool()
    assert run.of_kind("run_failed")[0].message == "ZeroDivisionError at step 3: in the model"
    assert "training_step" not in vars(trainer)


@pytest.mark.parametrize("how", ["forgotten", "trains again"])
def test_an_exception_outside_of_a_step_fails_the_run_later(how, hugging, spool):
    class Broken(list):
        def __getitem__(self, index):
            if index == 9 and how != "mended":
                raise ZeroDivisionError("in the data")
            return super().__getitem__(index)

    trainer = hugging.trainer(MechanicsCallback([Vitals(every(1))], sink=spool.url), data=Broken(hugging.data()))
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    if how == "forgotten":
        del trainer
        gc.collect()
    else:
        trainer.train_dataset = hugging.data()
        trainer.train()
    run = spool()
    assert "outside of its steps" in run.of_kind("run_failed")[0].message
    assert run.kinds().count("run_finished") == (how != "forgotten")


CRASH = """
import sys
sys.path.insert(0, {here!r})
import conftest
import transformers
from learnmech.probes import Vitals, every
from learnmech.probes.huggingface import MechanicsCallback

class Broken(list):
    def __getitem__(self, index):
        return super().__getitem__(index) if index < 13 else 1 / 0

callback = MechanicsCallback([Vitals(every(1))], sink={sink!r})
transformers.Trainer(
    conftest._model(), conftest._arguments("out"), train_dataset=Broken(conftest._data()), callbacks=[callback]
).train()
"""


def test_a_crash_of_the_program_is_recorded_at_its_end(spool):
    code = CRASH.format(here=str(Path(__file__).parent), sink=spool.url)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    run = spool()
    assert run.kinds() == ["run_started", "run_failed"]
    assert list(run.values("loss")) == [0, 1]  # a batch is fetched while the one before is used


def test_a_failure_of_ours_costs_the_measurements_alone(hugging, spool, monkeypatch, caplog):
    monkeypatch.setattr(Recorder, "after_step", lambda *_: 1 / 0)
    trainer = hugging.trainer(MechanicsCallback([Vitals(every(1))], sink=spool.url))
    trainer.train()
    assert trainer.state.global_step == STEPS
    assert "learnmech stops measuring this run" in caplog.text
    assert spool().kinds()[-1] == "run_failed"
