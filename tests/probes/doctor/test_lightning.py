"""`Trainer.fit` in a script, and a LightningModule by its name."""

import pytest

SCRIPT = """
    import torch
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
    from torch.utils.data import DataLoader, TensorDataset

    from learnmech.probes.lightning import MechanicsMonitor

    class Net(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.body = torch.nn.Sequential(
                torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.Dropout(0.1), torch.nn.Linear(16, 1)
            )

        def training_step(self, batch, batch_idx):
            loss = torch.nn.functional.mse_loss(self.body(batch[0]), batch[1])
            self.log("train", loss)
            self.logger.experiment.add_scalar("own", loss)
            return loss

        def validation_step(self, batch, batch_idx):
            self.log("val", torch.nn.functional.mse_loss(self.body(batch[0]), batch[1]))

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "val"}}

    if __name__ == "__main__":
        x = torch.randn(640, 8)
        loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=32, shuffle=True)
        trainer = pl.Trainer(
            accelerator="cpu", devices=2, strategy="ddp", max_epochs=50, accumulate_grad_batches=2,
            callbacks=[EarlyStopping("val"), ModelCheckpoint("kept"), MechanicsMonitor(budget=0.02)],
        )
        try:
            trainer.fit(Net(), loader, loader)
        except Exception:
            pass
        open("after", "w").close()
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_script_is_followed_on_one_device_and_leaves_nothing(doctor, by_name):
    """Validation metrics that a schedule asks for are there, loggers take anything, and nothing is written."""
    doctor.write("train.py", SCRIPT)
    code, report = doctor.json("train.py")
    probes, training = by_name(report), report["training"]
    assert code == 0, report
    assert report["budget"] == 0.02
    assert report["harmless"]["identical"] is True
    assert report["replay"]["verdict"] == "passed"
    assert report["replay"]["relative_error"] < 1e-4
    assert training["trainer"].startswith("lightning.pytorch ")
    assert (training["strategy"], training["accumulation"]) == ("SingleDeviceStrategy", 2)
    assert "one process instead of strategy ddp" in training["changes"]
    assert "without the callbacks EarlyStopping, ModelCheckpoint" in training["changes"]
    assert training["side_effects"] == [
        "running statistics (1 layers)",
        "random numbers (1 of dropout)",
        "what training_step logs",
    ]
    assert {name for name, probe in probes.items() if probe["wanted"]} == {
        "Sharpness",
        "GradientNoiseScale",
        "WeightDynamics",
        "Vitals",
    }
    assert all(probe["works"] == "yes" for probe in report["probes"] if probe["wanted"])
    assert doctor.left() == ["train.py"]


MANUAL = """
    import pytorch_lightning as pl
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    class ByHand(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.layer = torch.nn.Linear(8, 1)

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.layer(batch[0]).square().mean())
            optimizer.step()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    def data():
        return DataLoader(TensorDataset(torch.randn(320, 8)), batch_size=32)
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_module_that_optimizes_by_hand_is_told_what_to_pass(doctor, by_name):
    doctor.write("mine.py", MANUAL)
    code, report = doctor.json("--data", "mine:data", "mine:ByHand")
    probes = by_name(report)
    assert code == 1
    assert probes["Sharpness"]["works"] == "no"
    assert "optimizes by hand" in probes["Sharpness"]["reason"]
    assert probes["Sharpness"]["remedy"].startswith("Pass loss=")
    assert probes["WeightDynamics"]["works"] == "yes"
    assert report["harmless"]["identical"] is True
    assert report["complete"], "probes that are refused are not waited for"
    assert report["training"]["trainer"].startswith("pytorch_lightning ")
    assert doctor.left() == ["mine.py"]
