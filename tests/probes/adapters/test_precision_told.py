"""The precision that a trainer was told of reaches the probes."""

import pytest
import torch
from torch import nn

from learnmech.probes import every
from learnmech.probes.fabric import recorder_for
from learnmech.probes.huggingface import MechanicsCallback
from learnmech.probes.probe import BaseProbe, Moment


class Asking(BaseProbe):
    """Notes what it is told of the precision."""

    default_name, moment = "asking", Moment.UPDATE

    def __init__(self):
        super().__init__(every(1))
        self.told = set()

    def prepare(self, view):
        pass

    def measure(self, view):
        self.told.add(view.precise)
        return []


@pytest.mark.parametrize("half", [False, True])
def test_hugging_face(half, hugging, spool):
    asking = Asking()
    hugging.trainer(MechanicsCallback([asking], sink=spool.url, strict=True), bf16=half).train()
    assert asking.told == {not half}


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed", "bf16-true"])
def test_fabric(precision, spool):
    lightning = pytest.importorskip("lightning_fabric")
    fabric = lightning.Fabric(accelerator="cpu", devices=1, precision=precision)
    model = nn.Linear(4, 3)
    model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
    asking = Asking()

    def loss_fn(model, batch):
        return nn.functional.cross_entropy(model(batch[0]).double(), batch[1])

    with recorder_for(fabric, model, optimizer, loss_fn, [asking], sink=spool.url, strict=True) as recorder:
        for _ in range(3):
            batch = (torch.randn(6, 4), torch.randint(3, (6,)))
            optimizer.zero_grad()
            fabric.backward(loss_fn(model, batch))
            optimizer.step()
            recorder.after_step(batch)
    assert asking.told == {precision in ("32-true", "64-true")}
