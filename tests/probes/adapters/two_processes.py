"""One of two processes that train together, by transformers' Trainer and by Fabric, for `test_two_processes.py`."""

import os
import pickle
from pathlib import Path

import conftest
import torch
import transformers
from lightning.fabric import Fabric
from torch import nn
from torch.nn import functional

from learnmech.probes import GradientNoiseScale, Sharpness, Vitals, WeightDynamics, every
from learnmech.probes.fabric import recorder_for
from learnmech.probes.huggingface import MechanicsCallback

UPDATES, HALF = 4, 4
RANK, FOLDER = int(os.environ["RANK"]), os.environ["FOLDER"]


def probes():
    return [Sharpness(every(1), tol=1e-4), WeightDynamics(every(1)), Vitals(every(1)), GradientNoiseScale(every(1))]


def hugging(sink, batch=HALF, **more):
    """Train the tiny language model on sentences in order: two processes take alternate batches."""
    model = conftest._model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    settings = {"per_device_train_batch_size": batch, "max_steps": UPDATES, "max_grad_norm": 0.5} | more
    callbacks = [MechanicsCallback(probes(), sink=sink, strict=True)] if sink else []
    trainer = transformers.Trainer(
        model=model,
        args=conftest._arguments(Path.cwd() / "out", **settings),
        train_dataset=conftest._data(),
        callbacks=callbacks,
        optimizers=(optimizer, schedule),
    )
    trainer.train()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def fabric_problem():
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    batches = [(torch.randn(2 * HALF, 5), torch.randint(3, (2 * HALF,))) for _ in range(2 * UPDATES)]
    return model, torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9), batches


def loss_fn(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1])


def with_fabric(fabric, rank, sink):
    """Two micro-batches in an update, each process on its half of them."""
    model, optimizer, batches = fabric_problem()
    wrapped, stepper = fabric.setup(model, optimizer)
    settings = {"sink": sink, "accumulation": 2, "strict": True}
    recorder = recorder_for(fabric, wrapped, stepper, loss_fn, probes(), **settings).__enter__() if sink else None
    for index, whole in enumerate(batches, 1):
        batch = tuple(part[rank * HALF : (rank + 1) * HALF] for part in whole)
        loss = loss_fn(wrapped, batch)
        with fabric.no_backward_sync(wrapped, enabled=index % 2 == 1):
            fabric.backward(loss / 2)
        if recorder:
            recorder.after_backward(batch)
        if index % 2 == 0:
            stepper.step()
            stepper.zero_grad()
            if recorder:
                recorder.after_step(batch, loss)
    if recorder:
        recorder.close()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def main():
    found = {
        "hugging": hugging(f"spool:{FOLDER}/hugging"),
        "hugging alone": hugging(""),
        "hugging twice": hugging(f"spool:{FOLDER}/twice", batch=HALF // 2, gradient_accumulation_steps=2),
    }
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    found["fabric"] = with_fabric(fabric, RANK, f"spool:{FOLDER}/fabric")
    found["fabric alone"] = with_fabric(fabric, RANK, "")
    Path(FOLDER, f"{RANK}.pickle").write_bytes(pickle.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
