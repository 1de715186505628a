"""A loss scale that overflows: the optimizer leaves the step out, and no number of that step pretends to be one."""

import pytest
import pytorch_lightning as pl
import torch

SKIPPED = 4


@pytest.fixture
def scaled():
    """Settings of a trainer whose loss scale is real, on the CPU."""

    def make():
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        return {"plugins": [pl.plugins.MixedPrecision("16-mixed", "cpu", scaler)]}

    return make


class Overflows(pl.Callback):
    """Makes the gradient of one step infinite, as an overflow in half precision does; and keeps the weights."""

    def __init__(self):
        self.weights = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.weights.append([p.detach().clone() for p in pl_module.parameters()])

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step == SKIPPED:
            next(pl_module.parameters()).grad[0, 0] = float("inf")


def test_the_update_that_was_left_out(fit, outcome, monitor, scaled, spool):
    seen = Overflows()
    watched = fit([seen, monitor()], **scaled())
    assert outcome(watched) == outcome(fit([Overflows()], **scaled()))
    assert all(map(torch.equal, seen.weights[SKIPPED], seen.weights[SKIPPED + 1])), "the scaler left the step out"
    run = spool()
    assert not run.of_kind("probe_failed")
    assert run.values("update_norm")[SKIPPED] == 0.0
    (gradient,) = [m for step, m in run.all("grad_norm") if step == SKIPPED]
    assert gradient.status != "ok"
    assert len(run.values("sharpness")) == 8
