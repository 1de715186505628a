"""Noise from the processes that train together, for `test_noise.py`."""

import sys
from contextlib import nullcontext

import torch
import torch.distributed as dist
from common import begin, end, parallel, problem, recorded, state_of
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook, fp16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook

from learnmech.probes import GradientNoiseScale, Recorder, every

STEPS = 3


def batches(rank, size, step, micro):
    """The batches of a process at a step: other examples in each process and micro-batch."""
    _, _, (x, y) = problem(examples=200)
    first = ((step * size + rank) * micro) * 4
    return [(x[first + 4 * k :][:4], y[first + 4 * k :][:4]) for k in range(micro)]


def own_hook(size, bucket):
    """A mean over processes as a user might write it: on a copy, with what is left to do in a callback."""
    whole = bucket.buffer().clone()
    return dist.all_reduce(whole, async_op=True).get_future().then(lambda done: done.value()[0] / size)


def signs_hook(size, bucket):
    """One bit a number: all processes take part with the signs of their gradient, times its mean size."""
    buffer = bucket.buffer()
    return own_hook(size, Bucket(buffer.sign() * buffer.abs().mean()))


class Bucket:
    """What `own_hook` looks at."""

    def __init__(self, buffer):
        self.buffer = lambda: buffer


def hooks(size):
    """Communication hooks and their states, by name."""
    return {
        "torch's": (None, allreduce_hook),
        "own": (size, own_hook),
        "fp16": (None, fp16_compress_hook),
        "signs": (size, signs_hook),
        "low rank": (PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=2), powerSGD_hook),
    }


def train(rank, size, *, kind="ddp", micro=1, folder=None, clip=None, hook="", probes=None, breaks=None):
    """Train; return a digest of the end, and the pieces' gradients of every step."""
    plain, loss, _ = problem()
    model = parallel(plain, sharded=kind == "fsdp")
    if hook:
        model.register_comm_hook(*hooks(size)[hook])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = None
    if folder is not None:
        probes = [GradientNoiseScale(every(1))] if probes is None else probes
        recorder = Recorder(model, optimizer, loss, probes, sink=f"spool:{folder}", accumulation=micro)
        recorder.__enter__()
    for step in range(STEPS):
        if recorder is not None and (step, rank) == (breaks, 1):
            probes[0]._live._hooks.trouble = "broken in one process"
        optimizer.zero_grad()
        mine = batches(rank, size, step, micro)
        for index, batch in enumerate(mine):
            last = index == micro - 1
            if kind == "fsdp":
                model.set_requires_gradient_sync(last)
            with model.no_sync() if kind == "ddp" and not last else nullcontext():
                (loss(model, batch) / micro).backward()
            if recorder is not None:
                recorder.after_backward(batch)
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        if recorder is not None:
            recorder.after_step(mine[-1])
    if recorder is not None:
        recorder.close()
    return state_of(plain, [optimizer])


def expected(size, micro, steps=STEPS, *, examples=False):
    """tr Sigma and |G|^2 by step from the gradients of all pieces, or of all examples, in one process."""
    model, loss, _ = problem()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = []
    for step in range(steps):
        pieces = [batch for rank in range(size) for batch in batches(rank, size, step, micro)]
        if examples:
            pieces = [(x[None], y[None]) for batch in pieces for x, y in zip(*batch, strict=True)]
        each = len(pieces[0][0])
        rows = []
        for batch in pieces:
            gradients = torch.autograd.grad(loss(model, batch), list(model.parameters()))
            rows.append(torch.cat([g.reshape(-1) for g in gradients]))
        rows = torch.stack(rows)
        trace = each * float(rows.var(dim=0).sum())
        square = float(rows.mean(dim=0).square().sum()) - trace / (each * len(pieces))
        found.append((trace, square))
        optimizer.zero_grad()
        (sum(loss(model, batch) for batch in pieces) / len(pieces)).backward()
        optimizer.step()
    return found


def main():
    rank, size = begin()
    found = {"expected": {micro: expected(size, micro) for micro in (1, 3)}}
    found["expected examples"] = expected(size, 1, examples=True)

    def measured(name, **settings):
        found[name] = {"state": train(rank, size, folder=name, **settings), "plain": train(rank, size, **settings)}
        if rank == 0:
            found[name] |= recorded(name)

    measured("ddp")
    measured("ddp accumulated", micro=3)
    for hook in hooks(size):
        measured(f"ddp hook: {hook}", hook=hook)
    measured("ddp accumulated hook: own", micro=3, hook="own")
    measured("ddp clipped", clip=0.01)
    measured("ddp examples", probes=[GradientNoiseScale(every(1), source="examples")])
    measured("fsdp", kind="fsdp")
    measured("fsdp accumulated", kind="fsdp", micro=3)
    name = "broken"
    found[name] = {"state": train(rank, size, folder=name, breaks=1), "plain": train(rank, size)}
    if rank == 0:
        found[name] |= recorded(name)
    dist.barrier()
    end(found)


if __name__ == "__main__":
    sys.exit(main())
