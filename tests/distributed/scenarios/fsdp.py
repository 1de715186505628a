"""Sharded parameters: what several processes find together, for `test_fsdp.py` to compare with one process."""

import functools
import sys

import torch
import torch.distributed as dist
from common import attempted, begin, end, kept, problem, shards, state_of, top
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

from learnmech.probes.curvature import Choice
from learnmech.probes.curvature.preconditioners import inverse_root, preconditioner_of


def hybrid(mine, choice):
    """Two halves of four processes hold the same shards."""
    found = {}
    model, loss, _ = problem()
    fully_shard(model, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard")))
    before = state_of(model)
    found["hybrid"] = kept(top(model, loss, [mine], tol=1e-4, choice=choice))
    found["hybrid gathered"] = kept(top(model, loss, [mine], tol=1e-6, method="double_backward"))
    found["hybrid untouched"] = state_of(model) == before
    return found


def gathered(rank, size):
    """Products past the hooks of `fully_shard`: exact, and where differences are of no use."""
    found = {}
    uneven = [3 + 5 * r for r in range(size)]
    for kind in ("blocks", "root", "frozen", "kinked", "checkpointed"):
        model, loss, data = problem()
        model.register_buffer("counter", torch.zeros(()))
        if kind == "kinked":
            model[1] = torch.nn.ReLU()
        if kind == "frozen":
            model[0].weight.requires_grad_(False)
        if kind == "checkpointed":
            model[0].forward = functools.partial(checkpoint, model[0].forward, use_reentrant=False)
        if kind != "root":
            for layer in (model[0], model[3]):
                fully_shard(layer)
        fully_shard(model)
        mine = shards(data, uneven)[rank]
        loss(model, mine).backward()
        before, versions = state_of(model), [p._version for p in model.parameters()]
        result = kept(top(model, loss, [mine], k=2, tol=1e-6, method="double_backward"))
        same = state_of(model) == before and versions == [p._version for p in model.parameters()]
        again = loss(model, mine)
        again.backward()
        found[f"gathered {kind}"] = result | {"same": same, "trains on": again.item()}

    def fails(
        model, batch
    ):  # where nobody gathers anything on the way: not even in the middle of a pass do others wait
        if rank == size - 1:
            raise KeyError("before the model has run")
        return loss(model, batch)

    before = state_of(model)
    found["gathered fails"] = attempted(lambda: top(model, fails, [mine], method="double_backward"))
    found["gathered nan"] = attempted(
        lambda: top(
            model, lambda m, b: loss(m, b) * (torch.nan if rank == 0 else 1.0), [mine], method="double_backward"
        )
    )
    found["gathered survived"] = state_of(model) == before
    found["gathered again"] = kept(top(model, loss, [mine], method="double_backward", tol=1e-6))
    half, _, _ = problem(torch.float32)
    fully_shard(half, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    mine = tuple(t.float() if t.is_floating_point() else t for t in mine)
    found["gathered half"] = attempted(lambda: top(half, loss, [mine], method="double_backward"))
    return found


def failures(model, loss, mine, choice):
    """After the forward pass of one process, outside of any pass, NaN in one process."""
    found, rank, size = {}, dist.get_rank(), dist.get_world_size()
    calls = {"n": 0}

    def fails(model, batch):
        value = loss(model, batch)
        calls["n"] += 1
        if rank == size - 1 and calls["n"] == 4:
            raise KeyError("after the forward pass")
        return value

    before = state_of(model)
    found["forward"] = attempted(lambda: top(model, fails, [mine], choice=choice))
    found["nan"] = attempted(
        lambda: top(model, lambda m, b: loss(m, b) * (torch.nan if rank == 0 else 1.0), [mine], choice=choice)
    )
    found["no batch"] = attempted(lambda: top(model, loss, [] if rank == 0 else [mine], choice=choice))
    found["survived"] = state_of(model) == before
    found["again"] = kept(top(model, loss, [mine], tol=1e-4, choice=choice))
    loss(model, mine).backward()
    found["trains on"] = all(bool(p.grad.to_local().isfinite().all()) for p in model.parameters())
    return found


def main():
    rank, size = begin()
    found = {}
    choice = Choice()  # what it has learned once holds for all measurements: as in a training
    for kind in ("blocks", "root")[: 2 if size == 2 else 1]:
        model, loss, data = problem()
        model.register_buffer("counter", torch.zeros(()))
        if kind == "blocks":
            for layer in (model[0], model[3]):
                fully_shard(layer)
        fully_shard(model)
        mine = shards(data, [8] * size)[rank]
        loss(model, mine).backward()  # the gradient of training, which must survive
        before = state_of(model)
        parameters = list(model.parameters())
        gradients, versions = [p.grad for p in parameters], [p._version for p in parameters]
        if size == 2:
            found[f"{kind} even"] = kept(top(model, loss, [mine], k=2, tol=1e-4, choice=choice))
        found[f"{kind} uneven"] = kept(
            top(model, loss, [shards(data, [3 + 5 * r for r in range(size)])[rank]], tol=1e-4, choice=choice)
        )
        found[f"{kind} untouched"] = state_of(model) == before
        found[f"{kind} same gradients"] = all(p.grad is g for p, g in zip(parameters, gradients, strict=True))
        found[f"{kind} versions"] = versions == [p._version for p in parameters]
        loss(model, mine)  # a forward pass alone leaves parameters gathered: a measurement must not see stale ones
        with torch.no_grad():
            for p in parameters:
                p.to_local().mul_(1.5)
                p.grad = None
        if size == 4:
            break  # the rest does not depend on the number of processes
        found[f"{kind} moved"] = kept(top(model, loss, [mine], tol=1e-4, choice=choice))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
        loss(model, mine).backward()
        optimizer.step()
        scale = preconditioner_of(optimizer, list(model.parameters()))
        scale = inverse_root([s.to_local() if hasattr(s, "to_local") else s for s in scale])
        found[f"{kind} scaled"] = kept(top(model, loss, [mine], scale=scale, tol=1e-4, choice=choice))

    if size == 4:
        found |= hybrid(mine, choice)
    # several batches, not as many everywhere
    parts = shards(mine, [3, 5]) if rank == 0 else [mine]
    found["micro"] = kept(top(model, loss, parts, tol=1e-4, choice=choice))
    # an even number of steps with and without measuring
    digests = []
    for measuring in (False, True):
        model, loss, data = problem()
        fully_shard(model[0])
        fully_shard(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        for _ in range(2):
            loss(model, shards(data, [8] * size)[rank]).backward()
            if measuring:
                top(model, loss, [mine], max_products=3, choice=choice)
            optimizer.step()
            optimizer.zero_grad()
        digests.append(state_of(model, [optimizer]))
    found["training"] = digests[0] == digests[1]

    if size == 2:
        found |= gathered(rank, size)
    found |= failures(model, loss, mine, choice)
    end(found)


if __name__ == "__main__":
    sys.exit(main())
