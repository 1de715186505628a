"""Weight dynamics where parameters are sharded, for `test_weights_sharded.py`."""

import math
import sys

import torch
import torch.distributed as dist
from common import begin, end, problem, recorded, state_of
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.functional import cross_entropy

from learnmech.probes import Recorder, WeightDynamics, every

STEPS = 7
EACH = 4  # examples of each process


class FailsIn(WeightDynamics):
    """Fails in the last process at step 2, before or after the update."""

    def __init__(self, where):
        super().__init__(every(1), name="fails")
        self.where = where

    def prepare(self, view):
        super().prepare(view)
        if (self.where, view.step, dist.get_rank()) == ("prepare", 2, dist.get_world_size() - 1):
            raise torch.OutOfMemoryError("no room for a copy")

    def measure(self, view):
        if (self.where, view.step, dist.get_rank()) == ("measure", 2, dist.get_world_size() - 1):
            raise ValueError("broken in one process")
        return super().measure(view)


def network(kind):
    """The problem of all scenarios, or one with a weight whose scale does not matter."""
    if kind != "normalized":
        return problem()[0]
    torch.manual_seed(0)
    norm = nn.LayerNorm(7, eps=1e-12, elementwise_affine=False)
    return nn.Sequential(nn.Linear(5, 7, bias=False), norm, nn.Tanh(), nn.Linear(7, 3)).double()


def sharded(model, kind, size):
    """Lay the parameters out over the processes."""
    if kind in ("fsdp", "normalized"):
        fully_shard(model[0])
        return fully_shard(model)
    if kind == "hsdp":
        return fully_shard(model, mesh=init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("replicas", "shards")))
    if kind == "partly":  # the first layer alone is sharded
        fully_shard(model[0])
        return model
    if kind == "tensor parallel":
        mesh = init_device_mesh("cpu", (size,))
        model[0] = nn.Linear(5, 8).double()
        model[2] = nn.Identity()
        model[3] = nn.Linear(8, 3).double()
        return parallelize_module(model, mesh, {"0": ColwiseParallel(), "3": RowwiseParallel()})
    return nn.parallel.DistributedDataParallel(model)


def optimizer_of(model, kind):
    groups = [{"params": list(model[0].parameters())}, {"params": list(model[3].parameters()), "lr": 0.05}]
    groups.append({"params": [p for index in (1, 2) for p in model[index].parameters()]})
    groups = [group for group in groups if group["params"]]
    if kind == "normalized":
        return torch.optim.AdamW(groups, lr=0.1, weight_decay=0.1, foreach=False)
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.01, foreach=False)


def batch_of(rank, step, size, kind):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(size * EACH, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (size * EACH,), generator=generator)
    return (x, y) if kind == "tensor parallel" else (x[rank * EACH :][:EACH], y[rank * EACH :][:EACH])


def loss_of(model, batch):
    return cross_entropy(model(batch[0]), batch[1])


def train(rank, size, kind, *, folder=None, probe=None, told=True, clip=None):
    """Train; return a digest of the end."""
    torch.manual_seed(0)
    plain = network(kind)
    model = sharded(plain, kind, size)
    optimizer = optimizer_of(plain, kind)
    recorder = None
    if folder is not None:
        probes = [probe or WeightDynamics(every(1), per_parameter=True, parameter_groups=True)]
        recorder = Recorder(model, optimizer, loss_of, probes, sink=f"spool:{folder}")
        recorder.__enter__()
    for step in range(STEPS):
        optimizer.zero_grad()
        batch = batch_of(rank, step, size, kind)
        loss_of(model, batch).backward()
        if kind == "partly":
            for parameter in list(plain.parameters())[2:]:
                dist.all_reduce(parameter.grad)
                parameter.grad /= size
        if recorder is not None and told:
            recorder.after_backward(batch)
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        if recorder is not None:
            recorder.after_step(batch)
    if recorder is not None:
        recorder.close()
    return state_of(plain, [optimizer])


def expected(size, kind, clip=None):
    """Norms and angles of each tensor and of all of them by step, in one process, from whole vectors."""
    torch.manual_seed(0)
    model = network(kind)
    if kind == "tensor parallel":
        model[0], model[2], model[3] = nn.Linear(5, 8).double(), nn.Identity(), nn.Linear(8, 3).double()
    optimizer = optimizer_of(model, kind)
    found = {}
    for step in range(STEPS):
        optimizer.zero_grad()
        (sum(loss_of(model, batch_of(rank, step, size, kind)) for rank in range(size)) / size).backward()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        clipped = {name: p.grad.clone() for name, p in model.named_parameters()}
        optimizer.step()
        after = {name: p.detach() for name, p in model.named_parameters()}
        for scope in ("", *before):
            w, v, g, c = (
                torch.cat([t.flatten() for n, t in d.items() if scope in ("", n)])
                for d in (before, after, gradients, clipped)
            )
            a, b = w / w.norm(), v / v.norm()
            numbers = {
                "weight_norm": w.norm(),
                "weight_rms": w.square().mean().sqrt(),
                "grad_norm": g.norm(),
                "update_norm": (v - w).norm(),
                "relative_update": (v - w).norm() / w.norm(),
                "angular_update": 2 * torch.atan2((a - b).norm(), (a + b).norm()),
                "weight_decay_share": (0.01 * w).norm() / (c + 0.01 * w).norm(),
                "scale_invariance": (w * g).sum().abs() / w.norm() / g.norm(),
            }
            for name, value in numbers.items():
                decoupled = kind == "normalized" and name == "weight_decay_share"  # a share of the update then
                if (scope or name not in ("grad_norm", "scale_invariance")) and not decoupled:
                    found.setdefault(f"{name}:{scope}" if scope else name, {})[step] = float(value)
    return {key: values for key, values in found.items() if all(map(math.isfinite, values.values()))}


def main():
    rank, size = begin()
    found = {}
    sums = []
    reduce = dist.all_reduce

    def counting(tensor, *args, **settings):
        if tensor.numel() == 7 * 6:  # sums of six parameters
            sums.append(tensor.numel())
        return reduce(tensor, *args, **settings)

    def measured(name, kind, clip=None, **settings):
        sums.clear()
        dist.all_reduce = counting
        state = train(rank, size, kind, folder=name, clip=clip, **settings)
        dist.all_reduce = reduce
        found[name] = {"state": state, "sums": len(sums), "plain": train(rank, size, kind, clip=clip)}
        if rank == 0:
            found[name] |= recorded(name) | {"expected": expected(size, kind, clip)}

    measured("fsdp", "fsdp")
    measured("fsdp, clipped", "fsdp", clip=0.01)
    measured("fsdp, first seen at the step", "fsdp", told=False)
    measured("normalized", "normalized")
    measured("partly", "partly")
    if size == 4:
        measured("hsdp", "hsdp")
    measured("tensor parallel", "tensor parallel")
    measured("ddp", "ddp")
    for where in ("prepare", "measure"):
        measured(f"fails in {where}", "fsdp", probe=FailsIn(where))
    dist.barrier()
    end(found)


if __name__ == "__main__":
    sys.exit(main())
