"""Several callbacks on one trainer, callbacks that are copied, and the trainer's own reporters."""

import copy
import pickle

import pytest
import torch
import transformers

from learnmech.probes import Sharpness, Vitals, every
from learnmech.probes.huggingface import MechanicsCallback


def test_two_callbacks_measure_the_same_and_leave_nothing_behind(hugging, spools):
    found = []
    first, second = spools(), spools()
    callbacks = [
        MechanicsCallback([Sharpness(every(2)), Vitals(every(1))], sink=s.url, run=name, strict=True)
        for s, name in ((first, "a"), (second, "b"))
    ]
    trainer = hugging.trainer(*callbacks)
    trainer.train()
    for spool in (first, second):
        run = spool()
        assert {m.status.value for _, m in run.all("sharpness")} <= {"ok", "not_converged"}
        found.append((run.values("sharpness"), run.values("loss")))
    assert found[0] == found[1]
    assert len(found[0][1]) == 6
    assert "training_step" not in vars(trainer)


def test_a_step_of_the_users_own_is_put_back(hugging, spools):
    trainer = hugging.trainer(*(MechanicsCallback([], sink=spools().url, run=name, strict=True) for name in "ab"))
    calls, step = [], trainer.training_step

    def own(*args, **kwargs):
        calls.append(1)
        return step(*args, **kwargs)

    trainer.training_step = own
    trainer.train()
    assert vars(trainer)["training_step"] is own
    assert len(calls) == 6


class Copying(transformers.TrainerCallback):
    """Copies a callback in the midst of a training."""

    def __init__(self, callback):
        self.callback = callback
        self.copies = []

    def on_step_end(self, args, state, control, **kwargs):
        self.copies = [pickle.loads(pickle.dumps(self.callback)), copy.deepcopy(self.callback)]


def test_a_callback_can_be_copied_while_it_measures(hugging, spools):
    spool = spools()
    callback = MechanicsCallback([Vitals(every(1))], sink=spool.url, strict=True)
    copying = Copying(callback)
    hugging.trainer(callback, copying).train()
    for twin in copying.copies:
        hugging.trainer(twin).train()
    run = spool()
    assert run.kinds() == ["run_started", "run_finished"] * 3
    assert len(run.runs) == 3


class Board(transformers.TrainerCallback):
    """A reporter: known as such by where it comes from."""

    def __init__(self):
        self.rows = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.rows.append((state.global_step, dict(logs)))


Board.__module__ = "transformers.integrations.board"


@pytest.mark.parametrize("log", [False, True])
def test_reporters_get_the_numbers_at_their_steps_and_the_history_none(log, hugging, spools):
    spool, board = spools(), Board()
    trainer = hugging.trainer(MechanicsCallback([Vitals(every(1))], sink=spool.url, log=log, strict=True), board)
    trainer.train()
    stored = spool().values("loss")
    ours = {step: row["learnmech/loss"] for step, row in board.rows if "learnmech/loss" in row}
    assert ours.items() <= stored.items()
    assert {0, 5} <= ours.keys() if log else not ours
    assert not any(name.startswith("learnmech/") for row in trainer.state.log_history for name in row)
    assert trainer.state.global_step == 6
    assert torch.isfinite(torch.tensor(list(stored.values()))).all()


def test_a_function_instead(hugging, spools):
    seen = {}
    callback = MechanicsCallback([Vitals(every(1))], sink=spools().url, log=lambda values, step: seen.update({step: 1}))
    hugging.trainer(callback).train()
    assert set(range(6)) <= seen.keys()
    with pytest.raises(TypeError, match="log is 3"):
        MechanicsCallback(log=3)
