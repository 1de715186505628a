"""The monitor works in both packages that Lightning is installed as."""

import logging
import math

import lightning.pytorch as lp
import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from learnmech.probes import Sharpness, every
from learnmech.probes.lightning import MechanicsMonitor

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


@pytest.mark.parametrize("package", [pl, lp], ids=["pytorch_lightning", "lightning.pytorch"])
@pytest.mark.parametrize("bare", [True, False], ids=["bare", "list"])
def test_both_packages_take_the_monitor(package, bare, trainer_of, fit, spool):
    class Module(package.LightningModule):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(2))

        def training_step(self, batch):
            self.log("x", 1.0)
            return batch[0].mean() * self.w.pow(4).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    monitor = MechanicsMonitor([Sharpness(every(1))], sink=spool.url)
    fit(trainer_of(package, monitor if bare else [monitor]), Module())
    run = spool()
    assert len(run.values("sharpness")) == 6
    assert run.context["lightning"] == package.__version__
    assert math.isfinite(run.values("overhead").popitem()[1])
