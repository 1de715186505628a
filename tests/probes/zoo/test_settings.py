"""Do no harm under every way to run a step: skipped, accumulated, in other precisions, scaled, compiled."""

import pytest
import pytorch_lightning as pl
import torch
from torch.nn.functional import cross_entropy


def test_steps_that_return_none_are_skipped(monitored, zoo, passed):
    class Sometimes(zoo.Base):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx % 3 == 1 else loss

    passed(monitored(Sometimes, epochs=4))


@pytest.mark.parametrize(
    "settings",
    [
        {"accumulate_grad_batches": 4, "gradient_clip_val": 0.1},
        {"precision": "bf16-mixed"},
        {"precision": "64-true"},
        {"detect_anomaly": True},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_trainer_settings(monitored, zoo, settings):
    run = monitored(zoo.Base, epochs=4, **settings)
    assert [event.severity for event in run.of_kind("self_test")] == ["info"], run.of_kind("self_test")
    assert not run.of_kind("probe_failed")
    assert len(run.all("sharpness")) >= 3


def test_a_loss_scale(monitored, zoo):
    def plugins():
        return [pl.plugins.MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=256.0))]

    run = monitored(zoo.Base, plugins=plugins)
    assert [event.severity for event in run.of_kind("self_test")] == ["info"]
    assert not run.of_kind("probe_failed")


@pytest.mark.parametrize("whole", [True, False], ids=["the module", "a part"])
def test_compiled(monitored, zoo, whole, passed):
    class Compiled(zoo.Base):
        def __init__(self):
            super().__init__()
            if not whole:
                self.net = torch.compile(self.net, backend="aot_eager")

        def training_step(self, batch, batch_idx):
            return cross_entropy(self.net(batch[0]), batch[1])

    passed(monitored(lambda: torch.compile(Compiled(), backend="aot_eager") if whole else Compiled()))
