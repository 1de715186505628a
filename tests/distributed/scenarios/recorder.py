"""Training loops in several processes with a recorder in each, for `test_recorder.py`."""

import sys

import torch
from common import begin, end, problem, recorded, shards, state_of
from torch import nn
from torch.distributed.fsdp import fully_shard

from learnmech.probes import Recorder, Sharpness, WeightDynamics, every, is_probing
from learnmech.probes.distributed import meeting

STEPS = 9


def train(rank, size, *, sharded=False, folder=None, probes=(), failing=None, budget=0.01, everywhere=True, stops=None):
    """Train on this process's shard; return a digest of the end and the recorder."""
    plain, loss, data = problem()
    if sharded:
        fully_shard(plain[0])
        model = fully_shard(plain)
    else:
        model = nn.parallel.DistributedDataParallel(plain)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    batch = shards(data, [4 + 8 * r for r in range(size)])[rank] if not sharded else shards(data, [8] * size)[rank]

    def loss_fn(model, batch):
        value = loss(model, batch)
        return failing(value) if failing is not None and is_probing() else value

    recorder = None
    if folder is not None and (everywhere or rank == 0):
        recorder = Recorder(model, optimizer, loss_fn, probes, sink=f"spool:{folder}", budget=budget)
        recorder.__enter__()
    for step in range(STEPS):
        if recorder is not None and (step, rank) == (stops, 1):
            recorder._engine._guard.open = False  # as after three failures of the engine itself
        optimizer.zero_grad()
        value = loss_fn(model, batch)
        value.backward()
        if recorder is not None:
            recorder.after_backward(batch)
        optimizer.step()
        if recorder is not None:
            recorder.after_step(batch, value)
    if recorder is not None:
        recorder.close()
    return state_of(plain, [optimizer])


def main():
    rank, size = begin()
    found = {"plain": train(rank, size), "plain sharded": train(rank, size, sharded=True)}

    def measured(name, **settings):
        found[name] = {"state": train(rank, size, folder=name, **settings)}
        if rank == 0:
            found[name] |= recorded(name)

    probes = lambda: [Sharpness(every(4), tol=1e-5), WeightDynamics(every(4))]
    measured("ddp", probes=probes())
    measured("fsdp", probes=[Sharpness(every(4), tol=1e-4)], sharded=True)
    measured("fsdp all", probes=None, sharded=True, budget=0.9)

    def raises(value):
        if rank == size - 1:
            raise KeyError("in one process")
        return value

    measured("raises", probes=[Sharpness(every(1))], failing=raises)
    measured("nan", probes=[Sharpness(every(4))], failing=lambda value: value * (torch.nan if rank == 0 else 1.0))
    measured("stopped", probes=[Sharpness(every(1))], stops=3)
    measured("budget", probes=[Sharpness()], budget=0.9)
    meeting.PATIENCE = 1.0
    measured("alone", probes=[Sharpness(every(4))], everywhere=False)
    end(found)


if __name__ == "__main__":
    sys.exit(main())
