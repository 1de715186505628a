"""The monitor's part of a checkpoint: it never keeps a checkpoint from being written or read."""

import pytest

from learnmech.probes.lightning_run import Attempt


@pytest.mark.parametrize(
    "state",
    [{}, {"version": 0}, {"run_id": "ab" * 16}, {"run_id": None, "attempt": "x", "step": "y"}, {"step": -3}],
    ids=["empty", "old", "half", "damaged", "negative"],
)
def test_a_state_of_another_version(state, fit, outcome, monitor):
    watcher = monitor()
    watcher.load_state_dict(state)
    assert outcome(fit([watcher])) == outcome(fit())


def test_a_state_that_cannot_be_told(fit, outcome, monitor, spool, monkeypatch, tmp_path, caplog):
    """An error of ours while a checkpoint is written would cost the user the checkpoint; at the end, the ending."""

    def saves(module):
        if module.global_step == 5:
            monkeypatch.setattr(Attempt, "progress", broken)
            module.trainer.save_checkpoint(tmp_path / "c.ckpt")

    def broken(self):
        raise RuntimeError("a bug")

    fit([monitor()], saves)
    assert (tmp_path / "c.ckpt").exists()
    assert "a bug" in caplog.text
    assert spool().kinds()[-1] == "run_finished"
