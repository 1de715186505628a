"""Lightning's strategies in two processes with a monitor, for `test_monitor.py`."""

import os
import sys
import warnings

import torch
from common import begin, end, problem, recorded, state_of
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from learnmech.probes import LossChange, Sharpness, WeightDynamics, every

warnings.simplefilter("ignore")


def main():
    rank, size = begin()
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "none", "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0",
        "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0",
    }  # fmt: skip
    import lightning.pytorch as pl
    from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
    from torch.distributed.fsdp import fully_shard

    from learnmech.probes.lightning import MechanicsMonitor

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.loss, _ = problem()

        def configure_model(self):
            if self.device_mesh is not None:
                fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, index):
            loss = self.loss(self, batch)
            self.log("loss", loss)
            return loss

        def validation_step(self, batch, index):
            self.loss(self, batch)  # leaves parameters gathered

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.3)

    def fit(strategy, monitor):
        torch.manual_seed(1)
        module = Module()
        _, _, data = problem()
        loader = DataLoader(TensorDataset(*(t[:16] for t in data)), batch_size=8)
        trainer = pl.Trainer(
            accelerator="cpu", devices=size, strategy=strategy, max_epochs=5, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, callbacks=[monitor] if monitor else [],
        )  # fmt: skip
        trainer.fit(module, loader, loader)
        return state_of(module, trainer.optimizers)

    def loss(model, batch):
        return cross_entropy(model(batch[0]), batch[1])

    found = {}
    for name, strategy in (
        ("ddp", lambda: DDPStrategy(process_group_backend="gloo")),
        ("model_parallel", lambda: ModelParallelStrategy(data_parallel_size=size, tensor_parallel_size=1)),
    ):
        found[name] = {"plain": fit(strategy(), None)}
        probes = [Sharpness(every(2), tol=1e-5), LossChange(every(2)), WeightDynamics(every(2))]
        monitor = MechanicsMonitor(probes, sink=f"spool:{name}", loss=loss)
        found[name]["state"] = fit(strategy(), monitor)
        if rank == 0:
            found[name] |= recorded(name)
    end(found)


if __name__ == "__main__":
    sys.exit(main())
