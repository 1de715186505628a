"""The do-no-harm matrix: in every pair of settings, training with the monitor is training without it, bit for bit."""

import itertools
import logging

import pytest
import pytorch_lightning as pl
from benchmarks.harmless import AXES, STRATEGIES, compared, first_difference, pairwise

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


@pytest.mark.parametrize("cell", pairwise(), ids=str)
def test_the_training_is_the_same(cell):
    outcome = compared(cell)
    assert not outcome.different
    assert not outcome.failures
    assert outcome.measured > 100


def test_several_processes():
    """Two of them, forked in the fit. `ddp` is in `tests/distributed/test_monitor.py`, `ddp_spawn` in the command."""
    outcome = compared(next(cell for cell in STRATEGIES if cell.strategy == "ddp_fork"))
    assert not outcome.different
    assert not outcome.failures
    assert outcome.measured > 100


def test_any_two_settings_meet():
    cells = pairwise()
    for (one, values), (other, others) in itertools.combinations(AXES.items(), 2):
        met = {(getattr(cell, one), getattr(cell, other)) for cell in cells}
        assert met == set(itertools.product(values, others))


def test_the_comparison_can_fail():
    """A monitor that draws one number at one hook of one step is told apart."""
    import torch

    class Careless(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 2:
                torch.rand(())

    assert compared(pairwise()[0], lambda cell, folder: Careless()).different.startswith("torch")
    assert first_difference([], []) == "0 hooks and 0"
