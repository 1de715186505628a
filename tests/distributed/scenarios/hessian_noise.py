"""The Hessian-weighted noise scale in several processes, for `test_hessian_noise.py`."""

import sys

import torch
from common import begin, end, parallel, problem, recorded, state_of

from learnmech.probes import HessianNoiseScale, Recorder, every

STEPS = 3


def batches(rank, step):
    """The batch of a process at a step: 6 examples in the first process, 8 in the others."""
    _, _, (x, y) = problem(examples=200)
    first = 32 * step + 8 * rank
    return tuple(t[first : first + (6 if rank == 0 else 8)] for t in (x, y))


def train(rank, *, kind="ddp", folder=None, small=None):
    """Train; return a digest of the end. At step `small` the last process has too few examples to cut."""
    plain, loss, _ = problem()
    model = parallel(plain, sharded=kind == "fsdp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = None
    if folder is not None:
        recorder = Recorder(model, optimizer, loss, [HessianNoiseScale(every(1))], sink=f"spool:{folder}")
        recorder.__enter__()
    for step in range(STEPS):
        batch = batches(rank, step)
        if step == small and rank == 1:
            batch = tuple(t[:2] for t in batch)
        optimizer.zero_grad()
        value = loss(model, batch)
        value.backward()
        optimizer.step()
        if recorder is not None:
            recorder.after_step(batch, value)
    if recorder is not None:
        recorder.close()
    return state_of(plain, [optimizer])


def main():
    rank, size = begin()
    found = {"sizes": size}

    def measured(name, **settings):
        found[name] = {"state": train(rank, folder=name, **settings), "plain": train(rank, **settings)}
        if rank == 0:
            found[name] |= recorded(name)

    measured("ddp")
    measured("fsdp", kind="fsdp")
    measured("small", small=1)
    end(found)


if __name__ == "__main__":
    sys.exit(main())
