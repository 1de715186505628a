"""Do no harm beside callbacks that average, prune or schedule: their state is training's, too."""

import copy

import pytest
import pytorch_lightning as pl
import torch
from torch import nn


class Ema(pl.callbacks.WeightAveraging):
    """An exponential moving average, from the first step on."""

    def __init__(self):
        super().__init__(device="cpu", use_buffers=True, avg_fn=lambda a, b, n: 0.9 * a + 0.1 * b)


class Average(nn.Module):
    """Keeps the average that a callback of ours made, so that the comparison sees it."""

    def __init__(self, net):
        super().__init__()
        self.net = copy.deepcopy(net).requires_grad_(False)

    def update(self, net):
        with torch.no_grad():
            for a, b in zip(self.net.parameters(), net.parameters(), strict=True):
                a.lerp_(b, 0.1)


def _pruning():
    return pl.callbacks.ModelPruning("l1_unstructured", amount=0.2, use_lottery_ticket_hypothesis=False)


CALLBACKS = {
    "moving average": (Ema, 2),
    "SWA": (lambda: pl.callbacks.StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1, device="cpu"), 3),
    "accumulation by epoch": (lambda: pl.callbacks.GradientAccumulationScheduler({0: 1, 1: 3}), 4),
    "pruning": (_pruning, 3),
}


@pytest.mark.parametrize("name", CALLBACKS)
def test_callbacks_of_the_trainer(monitored, zoo, name):
    make, epochs = CALLBACKS[name]
    run = monitored(zoo.Base, callbacks=lambda: [make()], epochs=epochs)
    assert [event.severity for event in run.of_kind("self_test")] == ["info"], run.of_kind("self_test")
    assert not run.of_kind("probe_failed"), run.of_kind("probe_failed")[0].data["traceback"]
    assert len(run.all("sharpness")) >= 3


def test_an_average_kept_by_hooks_of_the_module(monitored, zoo, passed):
    class Averaged(zoo.Base):
        def __init__(self):
            super().__init__()
            self.average = Average(self.net)

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.average.update(self.net)

        def memory(self):
            return self.average.net.state_dict()

    passed(monitored(Averaged))
