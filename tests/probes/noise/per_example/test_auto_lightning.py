"""What `auto` takes under Lightning: batches are known before they are used, and a step may resist being replayed."""

import copy
import warnings

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from learnmech.probes import GradientNoiseScale, every
from learnmech.probes.lightning import MechanicsMonitor
from learnmech.probes.noise.choice import CUT_EVERY

B, STEPS = 8, 14


def loss(net, batch):
    return (net(batch[0]) - batch[1]).square().sum(1).mean()


class Regression(pl.LightningModule):
    """Keeps the weights and the batch of each step."""

    def __init__(self, forgetful=False):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
        self.seen, self.forgetful = [], forgetful
        self.numbers = iter(range(10**6))

    def on_train_batch_start(self, batch, index):
        self.seen.append((copy.deepcopy(self.net), batch))

    def training_step(self, batch, index):
        factor = 1.0 + (next(self.numbers) % 97) * 0.01 if self.forgetful else 1.0
        return factor * loss(self.net, batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fitted(callbacks, **settings):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(B * STEPS, 4, generator=generator)
    y = torch.randn(B * STEPS, 2, generator=generator)
    module = Regression(**settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=callbacks,
        )
        trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=B))
    return module


def test_each_step_is_measured_once(oracle, spool):
    module = fitted(MechanicsMonitor([GradientNoiseScale(every(1))], sink=spool.url, strict=True))
    run = spool()
    found = {step: m for step, m in run.all("noise_trace") if m.value is not None}
    assert len(run.all("noise_trace")) == len(found)
    first = min(found)
    assert first <= 2
    cut = [step for step, m in found.items() if m.method == "split_batch_in_4"]
    assert cut == list(range(first, STEPS, CUT_EVERY))
    for step, m in found.items():
        if step not in cut:
            assert m.method == "examples"
            rows = oracle.every_gradient(module.seen[step][0], loss, module.seen[step][1])
            assert m.value == pytest.approx(oracle.expected(rows, torch.ones(B))[0], rel=1e-6)
    assert not run.of_kind("probe_failed")
    plain = fitted([])
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), plain.parameters(), strict=True))


def test_a_step_that_cannot_be_replayed(spool):
    """An iterator moves on with every call: the test of replays fails, and examples are told apart all the same."""
    fitted(MechanicsMonitor([GradientNoiseScale(every(1))], sink=spool.url), forgetful=True)
    run = spool()
    values = {step: m for step, m in run.all("noise_trace") if m.value is not None}
    assert {m.method for m in values.values()} == {"examples"}
    assert len(values) >= STEPS - 4
    assert any("was not tested" in event.message for event in run.of_kind("probe_notice"))
