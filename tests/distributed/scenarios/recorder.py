"""Training loops in several processes with a recorder in each, for `test_recorder.py`."""

import sys
import time
from contextlib import nullcontext

import torch
from common import begin, end, parallel, problem, recorded, shards, state_of
from torch.utils._python_dispatch import TorchDispatchMode

from learnmech.probes import GradientNoiseScale, Recorder, Sharpness, WeightDynamics, every, is_probing
from learnmech.probes.distributed import meeting

STEPS = 9
FIRST_ORDINARY = 5
"""With a schedule of every 4 steps: what is measured at step 4 is behind, the next comes at step 8."""


class Collectives(TorchDispatchMode):
    """Counts what processes say to each other."""

    def __init__(self):
        super().__init__()
        self.met = {}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = str(operation)
        if name.startswith(("c10d", "_c10d")):
            self.met[name] = self.met.get(name, 0) + 1
        return operation(*args, **kwargs or {})


def ordinary(rank, size, *, sharded, folder=None):
    """Train; return what processes said to each other in three steps at which nothing is due."""
    plain, loss, data = problem()
    model = parallel(plain, sharded=sharded)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    batch = shards(data, [8] * size)[rank]
    settings = {"sink": f"spool:{folder}", "budget": 0.0}
    probes = [Sharpness(every(4)), WeightDynamics(every(4)), GradientNoiseScale(every(4))]
    recorder = None if folder is None else Recorder(model, optimizer, loss, probes, **settings).__enter__()
    counted = Collectives()
    for step in range(STEPS):
        watched = counted if FIRST_ORDINARY <= step < FIRST_ORDINARY + 3 else nullcontext()
        with watched:
            optimizer.zero_grad()
            value = loss(model, batch)
            value.backward()
            if recorder is not None:
                recorder.after_backward(batch)
            optimizer.step()
            if recorder is not None and step < FIRST_ORDINARY + 2:  # after the last one step 8 is due
                recorder.after_step(batch, value)
        if recorder is not None and step >= FIRST_ORDINARY + 2:
            recorder.after_step(batch, value)
    if recorder is not None:
        recorder.close()
    return counted.met


def train(
    rank,
    size,
    *,
    sharded=False,
    folder=None,
    probes=(),
    failing=None,
    budget=0.01,
    everywhere=True,
    stops=None,
    slow=0.0,
):
    """Train on this process's shard; return a digest of the end and the recorder."""
    plain, loss, data = problem()
    model = parallel(plain, sharded=sharded)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    batch = shards(data, [4 + 8 * r for r in range(size)])[rank] if not sharded else shards(data, [8] * size)[rank]

    def loss_fn(model, batch):
        value = loss(model, batch)
        if is_probing() and rank == 1:
            time.sleep(slow)
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
        time.sleep(slow if rank == 1 else 0)
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
    measured("fsdp both", probes=[Sharpness(every(4)), GradientNoiseScale(every(4))], sharded=True)
    measured("fsdp all", probes=None, sharded=True, budget=0.9)

    def raises(value):
        if rank == size - 1:
            raise KeyError("in one process")
        return value

    measured("raises", probes=[Sharpness(every(1))], failing=raises)
    measured("nan", probes=[Sharpness(every(4))], failing=lambda value: value * (torch.nan if rank == 0 else 1.0))
    measured("stopped", probes=[Sharpness(every(1))], stops=3)
    measured("budget", probes=[Sharpness()], budget=0.9)
    for name, sharded in (("slow", False), ("slow sharded", True)):
        measured(name, probes=[Sharpness(), GradientNoiseScale()], budget=0.9, slow=0.1, sharded=sharded)
    for sharded in (False, True):
        said = [ordinary(rank, size, sharded=sharded, folder=f"ordinary {sharded}" if on else None) for on in (0, 1)]
        found[f"ordinary {sharded}"] = said
    meeting.PATIENCE = 1.0
    measured("alone", probes=[Sharpness(every(4))], everywhere=False)
    end(found)


if __name__ == "__main__":
    sys.exit(main())
