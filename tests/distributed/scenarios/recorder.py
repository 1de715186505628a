"""Training loops in several processes with a recorder in each, for `test_recorder.py`."""

import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from common import begin, end, parallel, problem, recorded, shards, state_of
from torch import distributed as dist
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


@dataclass
class How:
    """How a training goes.

    Attributes:
        sharded: Whether parameters are sharded.
        static: Whether the wrapper is told that its graph stays the same.
        probes: What is measured.
        failing: What becomes of the loss while it is probed.
        budget: The recorder's.
        everywhere: Whether all processes have a recorder.
        stops: Step at which the second one stops measuring.
        slow: Seconds that the second one takes more, at each step and for each evaluation.
        resumed: Step at which a new recorder goes on with the state of the first one.
    """

    sharded: bool = False
    static: bool = False
    probes: Any = ()
    failing: Any = None
    budget: float = 0.01
    everywhere: bool = True
    stops: int = -1
    slow: float = 0.0
    resumed: int = -1


def train(rank, size, how, folder=None):
    """Train on this process's shard; return a digest of the end."""
    plain, loss, data = problem()
    model = parallel(plain, sharded=how.sharded, static=how.static)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    batch = shards(data, [8] * size if how.sharded else [4 + 8 * r for r in range(size)])[rank]

    def loss_fn(model, batch):
        value = loss(model, batch)
        if is_probing() and rank == 1:
            time.sleep(how.slow)
        return how.failing(value) if how.failing is not None and is_probing() else value

    def begun(state=None):
        if folder is None or not (how.everywhere or rank == 0):
            return None
        recorder = Recorder(model, optimizer, loss_fn, how.probes, sink=f"spool:{folder}", budget=how.budget)
        if state is not None:
            recorder.load_state_dict(state)
        return recorder.__enter__()

    recorder = begun()
    for step in range(STEPS):
        if recorder is not None and step == how.resumed:
            states = [recorder.state_dict()]
            dist.broadcast_object_list(states)  # a checkpoint is the first one's
            recorder.close()
            recorder = begun(states[0])
        if recorder is not None and (step, rank) == (how.stops, 1):
            recorder._engine._guard.open = False  # as after three failures of the engine itself
        optimizer.zero_grad()
        value = loss_fn(model, batch)
        value.backward()
        if recorder is not None:
            recorder.after_backward(batch)
        time.sleep(how.slow if rank == 1 else 0)
        optimizer.step()
        if recorder is not None:
            recorder.after_step(batch, value)
    if recorder is not None:
        recorder.close()
    return state_of(plain, [optimizer])


def accumulating(rank, size, folder):
    """Two micro-batches an update, between which sharded parameters stay whole; told of one by one."""
    plain, loss, data = problem()
    model = parallel(plain, sharded=True)
    model.set_reshard_after_backward(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    batch = shards(data, [8] * size)[rank]
    recorder = Recorder(model, optimizer, loss, [WeightDynamics(every(1))], sink=f"spool:{folder}", accumulation=2)
    with recorder:
        for _ in range(4):
            optimizer.zero_grad()
            for piece in range(2):
                part = tuple(tensor[4 * piece : 4 * piece + 4] for tensor in batch)
                value = loss(model, part) / 2
                value.backward()
                recorder.after_backward(part)
            optimizer.step()
            recorder.after_step(part, value.detach())
    return recorded(folder)["statuses"] if rank == 0 else {}


def main():
    rank, size = begin()
    found = {"plain": train(rank, size, How()), "plain sharded": train(rank, size, How(sharded=True))}
    found["plain static"] = train(rank, size, How(static=True))  # which adds up in another order

    def measured(name, **settings):
        found[name] = {"state": train(rank, size, How(**settings), name)}
        if rank == 0:
            found[name] |= recorded(name)

    probes = lambda: [Sharpness(every(4), tol=1e-5), WeightDynamics(every(4))]
    measured("ddp", probes=probes())
    measured("static", probes=probes(), static=True)
    measured("resumed", probes=probes(), resumed=6)
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
    found["accumulating"] = accumulating(rank, size, "accumulating")
    meeting.PATIENCE = 1.0
    measured("alone", probes=[Sharpness(every(4))], everywhere=False)
    end(found)


if __name__ == "__main__":
    sys.exit(main())
