"""What tests of `MechanicsMonitor` share: a module whose curvature has a closed form, and quiet trainers for it."""

import warnings

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Quartic(pl.LightningModule):
    """L(w) = s sum w^4 / 12 with s the mean of the batch: H = s diag(w^2)."""

    def __init__(self, lr=0.05, optimizer="SGD", step_size=100, **settings):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, -2.0, 1.5]))
        self.lr, self.optimizer, self.step_size, self.settings = lr, optimizer, step_size, settings
        self.weights = []

    def loss_of(self, batch):
        return batch[0].mean() * self.w.pow(4).sum() / 12

    def on_train_batch_start(self, batch, batch_idx):
        self.weights.append((self.global_step, self.w.detach().clone(), float(batch[0].mean())))

    def training_step(self, batch, batch_idx):
        return self.loss_of(batch)

    def configure_optimizers(self):
        optimizer = getattr(torch.optim, self.optimizer)(self.parameters(), lr=self.lr, **self.settings)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, self.step_size, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _data(examples=12, batch=3, **settings):
    generator = torch.Generator().manual_seed(0)
    x = 1 + 0.1 * torch.randn(examples, 1, generator=generator)
    return DataLoader(TensorDataset(x), batch_size=batch, **settings)


def _trainer_of(package=pl, callbacks=(), **settings):
    settings = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    } | settings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return package.Trainer(callbacks=callbacks, **settings)


def _fit(trainer, module, loader=None, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, loader or _data(), **settings)
    return module


@pytest.fixture
def quartic():
    """The class of the module, to train or to derive from."""
    return Quartic


@pytest.fixture
def data():
    """`data(examples, batch)`: a loader of batches whose means differ."""
    return _data


@pytest.fixture
def trainer_of():
    """`trainer_of(package, callbacks)`: a trainer for two epochs on the CPU that prints and keeps nothing."""
    return _trainer_of


@pytest.fixture
def fit():
    """`fit(trainer, module, loader)`: train without Lightning's warnings and return the module."""
    return _fit
