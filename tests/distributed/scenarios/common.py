"""What scenarios share: joining the group, problems, handing over what was found."""

import datetime as dt
import hashlib
import itertools
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy

from learnmech.probes.curvature import Choice, top_eigenvalues_of
from learnmech.probes.curvature.processes import operator_of
from learnmech.probes.distributed import peers_of
from learnmech.probes.distributed.isolation import isolated_together
from learnmech.probes.isolation import FunctionSource

WAIT = dt.timedelta(seconds=60)  # a collective that waits longer has deadlocked


def begin():
    """Join the group; `sys.argv` is rank, size, folder."""
    rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size, timeout=WAIT)
    return rank, size


def end(found):
    """Hand over what was found and leave together."""
    folder = Path(sys.argv[3])
    torch.save(found, folder / f"{sys.argv[1]}.pt")
    dist.barrier()
    dist.destroy_process_group()


def problem(dtype=torch.float64, examples=48):
    """A small smooth network with a loss and data; the same in every process."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.LayerNorm(7), nn.Linear(7, 3)).to(dtype)
    x, y = torch.randn(examples, 5, dtype=dtype), torch.randint(3, (examples,))
    return model, lambda model, batch: cross_entropy(model(batch[0]), batch[1]), (x, y)


def parallel(model, *, sharded, static=False):
    """The problem's model for several processes: sharded over them, or whole in each."""
    if not sharded:
        return nn.parallel.DistributedDataParallel(model, static_graph=static)
    fully_shard(model[0])
    return fully_shard(model)


def shards(data, sizes):
    """Cut a batch into consecutive parts."""
    bounds = [sum(sizes[:index]) for index in range(len(sizes) + 1)]
    return [tuple(t[a:b] for t in data) for a, b in itertools.pairwise(bounds)]


def state_of(model, optimizers=()):
    """A digest of everything a measurement could change: weights, gradients, buffers, random numbers, flags."""
    sha = hashlib.sha256()

    def feed(tensor):
        tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        sha.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode() + tensor.detach().contiguous().numpy().tobytes())

    for name, p in model.named_parameters():
        sha.update(f"{name}{p.requires_grad}{p.grad is None}".encode())
        feed(p)
        if p.grad is not None:
            feed(p.grad)
    for _, buffer in model.named_buffers():
        feed(buffer)
    for optimizer in optimizers:
        for state in optimizer.state.values():
            for value in state.values():
                feed(torch.as_tensor(value))
    sha.update(torch.get_rng_state().numpy().tobytes())
    sha.update(str([m.training for m in model.modules()]).encode())
    return sha.hexdigest()


def top(model, loss, batches, k=1, method="auto", scale=None, choice=None, **settings):
    """What `top_eigenvalues` does in several processes."""
    peers = peers_of(model)

    def work(pure):
        operator = operator_of(pure, batches, choice or Choice(method), scale=scale)
        return top_eigenvalues_of(operator, k, **settings)

    return isolated_together(FunctionSource(model, loss), work, peers=peers)


def kept(result):
    return {
        "values": result.eigenvalues,
        "residuals": result.residuals,
        "vectors": result.vectors,
        "status": str(result.status),
        "products": result.products,
        "loss": result.loss,
        "unused": result.unused,
        "reason": result.reason,
    }


def attempted(work):
    try:
        return kept(work())
    except Exception as error:
        return {"error": type(error).__name__, "message": str(error)}


def recorded(folder):
    """What a spool holds: values by observable and step, statuses, kinds of events, processes that wrote."""
    from learnmech.wire.spool import batches

    held = list(batches(Path(folder)))
    frames = [frame for batch in held for frame in batch.frames]
    measured = [(frame.step, m) for frame in frames for m in frame.measurements]
    return {
        "sharpness": {step: m.value for step, m in measured if m.observable == "sharpness"},
        "status": {step: str(m.status) for step, m in measured if m.observable == "sharpness"},
        "reasons": [m.reason for _, m in measured if m.observable == "sharpness"],
        "methods": sorted({m.method for _, m in measured if m.observable == "sharpness"}),
        "observables": sorted({m.observable for _, m in measured}),
        "events": [(event.kind, event.message) for frame in frames for event in frame.events],
        "values": _table(measured, lambda m: m.value),
        "errors": _table(measured, lambda m: m.stderr),
        "statuses": _table(measured, lambda m: str(m.status)),
        "ways": _table(measured, lambda m: m.method),
        "why": _table(measured, lambda m: m.reason),
        "runs": len({batch.run.id for batch in held}),
        "attempts": sorted({batch.attempt for batch in held}),
    }


def _table(measured, part):
    """Part of each measurement by observable (with its scope after a colon) and step."""
    found = {}
    for step, m in measured:
        found.setdefault(m.observable + (f":{m.scope}" if m.scope else ""), {})[step] = part(m)
    return found
