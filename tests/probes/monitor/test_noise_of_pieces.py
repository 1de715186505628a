"""Under Lightning, the noise of accumulated micro-batches: seen before clipping, and nothing is evaluated for it."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from learnmech.probes import GradientNoiseScale, every
from learnmech.probes.lightning import MechanicsMonitor

SIZE, PIECES = 4, 3
EXAMPLES = SIZE * PIECES * 5


class Regression(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1))
        self.seen = []

    def training_step(self, batch, index):
        x, y = batch
        gradients = None
        if self.trainer.precision == "32-true":
            with torch.enable_grad():
                loss = (self.net(x) - y).square().mean()
                gradients = torch.autograd.grad(loss, list(self.net.parameters()))
            self.seen.append(torch.cat([g.reshape(-1) for g in gradients]).double())
        return (self.net(x) - y).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def _data():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(EXAMPLES, 5, generator=generator)
    return DataLoader(TensorDataset(x, x.sum(dim=1, keepdim=True).sin()), batch_size=SIZE)


@pytest.fixture
def trained(trainer_of, fit, spool):
    def train(**settings):
        monitor = MechanicsMonitor([GradientNoiseScale(every(1))], sink=spool.url, strict=True)
        trainer = trainer_of(callbacks=monitor, max_epochs=1, accumulate_grad_batches=PIECES, **settings)
        return fit(trainer, Regression(), _data()), spool()

    return train


@pytest.mark.parametrize("clip", [None, 0.01])
def test_the_pieces_of_each_update(trained, clip):
    module, run = trained(gradient_clip_val=clip)
    assert list(run.values("noise_trace")) == [0, 1, 2, 3, 4], "from the first update on: nothing is replayed"
    for step, trace in run.values("noise_trace").items():
        rows = torch.stack(module.seen[step * PIECES : (step + 1) * PIECES])
        exact = SIZE * float(rows.var(dim=0).sum())
        assert trace == pytest.approx(exact, rel=1e-4)
        # G is the gradient of the data set, from which batches are drawn without replacement
        square = float(rows.mean(dim=0).square().sum()) - exact * (1 / (SIZE * PIECES) - 1 / EXAMPLES)
        assert run.values("grad_sq_norm")[step] == pytest.approx(square, rel=1e-3, abs=1e-6)
    assert {m.method for _, m in run.all("noise_trace")} == {"micro_batches"}


def test_half_precision(trained):
    _, run = trained(precision="bf16-mixed")
    assert [m.status for _, m in run.all("noise_trace")] == ["ok"] * 5
