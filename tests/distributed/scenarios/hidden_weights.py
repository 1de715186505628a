"""FullyShardedDataParallel (FSDP1) in plain loops and under Lightning, for `test_hidden_weights.py`."""

import os
import sys
import warnings

import torch
from common import begin, end, problem, recorded, shards, state_of
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from learnmech.probes import GradientNoiseScale, Recorder, Sharpness, Vitals, WeightDynamics, every

warnings.simplefilter("ignore")

STEPS = 4


def probes():
    return [Sharpness(every(1)), GradientNoiseScale(every(1)), WeightDynamics(every(1)), Vitals(every(1))]


def wrapped(module, original=True):
    return FullyShardedDataParallel(module, use_orig_params=original, device_id=torch.device("cpu"))


def nested():
    plain = problem()[0]
    plain[0] = wrapped(plain[0])
    model = wrapped(plain)
    return model, model


def single():
    model = wrapped(problem()[0])
    return model, model


def flat():
    model = wrapped(problem()[0], original=False)
    return model, model


def inside():
    """The recorder is given what is inside the wrapper."""
    model = wrapped(problem()[0])
    return model, model.module


def inside_flat():
    model = wrapped(problem()[0], original=False)
    return model, model.module


def train(rank, size, build, folder=None):
    """Train on this process's shard; return digests of weights, gradients and all else after each step."""
    torch.manual_seed(7)
    model, shown = build()
    _, loss, data = problem()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    batch = shards(data, [8] * size)[rank]
    recorder = None
    if folder is not None:
        recorder = Recorder(shown, optimizer, loss, probes(), sink=f"spool:{folder}")
        recorder.__enter__()
    states = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        value = loss(model, batch)
        value.backward()
        if recorder is not None:
            recorder.after_backward(batch)
        optimizer.step()
        if recorder is not None:
            recorder.after_step(batch, value)
        states.append(state_of(model, [optimizer]))
    if recorder is not None:
        recorder.close()
    return states


def fit(rank, size, folder=None):
    """Train by Lightning's FSDPStrategy, whose class insists on CUDA; one derived from it does not."""
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "none", "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0",
        "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0",
    }  # fmt: skip
    import lightning.pytorch as pl
    from lightning.pytorch.strategies import FSDPStrategy

    from learnmech.probes.lightning import MechanicsMonitor

    class OnHost(FSDPStrategy):
        def _setup_model(self, model):
            return wrapped(model)

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.loss, _ = problem()
            self.states = []

        def training_step(self, batch, index):
            return self.loss(self.net, batch)

        def on_train_batch_end(self, *_):
            self.states.append(state_of(self, self.trainer.optimizers))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.3)

    torch.manual_seed(1)
    module = Module()
    loader = DataLoader(TensorDataset(*(t[:32] for t in problem()[2])), batch_size=4)
    monitor = [MechanicsMonitor(probes(), sink=f"spool:{folder}", loss=problem()[1])] if folder else []
    pl.Trainer(
        accelerator="cpu", devices=size, strategy=OnHost(process_group_backend="gloo"), max_epochs=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=monitor,
    ).fit(module, loader)  # fmt: skip
    return module.states


def main():
    rank, size = begin()
    found = {}
    for build in (nested, single, flat, inside, inside_flat):
        name = build.__name__
        found[name] = {"plain": train(rank, size, build), "state": train(rank, size, build, name)}
    found["lightning"] = {"plain": fit(rank, size), "state": fit(rank, size, "lightning")}
    if rank == 0:
        for name in found:
            found[name] |= recorded(name)
    end(found)


if __name__ == "__main__":
    sys.exit(main())
