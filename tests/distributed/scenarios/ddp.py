"""Several processes, each with its own data: what they find, for `test_ddp.py` to compare with one process."""

import sys

import torch
import torch.distributed as dist
from common import attempted, begin, end, kept, problem, shards, state_of, top
from torch import nn

from learnmech.probes.curvature import Choice, top_eigenvalues_of
from learnmech.probes.curvature.preconditioners import inverse_root, preconditioner_of
from learnmech.probes.curvature.processes import operator_of
from learnmech.probes.distributed import peers_of
from learnmech.probes.distributed.isolation import isolated_together
from learnmech.probes.isolation import FunctionSource


class Fails:
    """A loss that fails in one process at its n-th call, by an exception or by a number."""

    def __init__(self, loss, rank, call, outcome):
        self.loss, self.rank, self.call, self.outcome, self.calls = loss, rank, call, outcome, 0

    def __call__(self, model, batch):
        self.calls += 1
        value = self.loss(model, batch)
        if dist.get_rank() == self.rank and self.calls >= self.call:
            if isinstance(self.outcome, Exception):
                raise self.outcome
            return value * self.outcome
        return value


def main():
    rank, size = begin()
    found = {}
    plain, loss, data = problem()
    model = nn.parallel.DistributedDataParallel(plain)
    before = state_of(plain)

    mine = [shards(data, [8] * size)[rank]]
    last = size - 1
    sizes = [3 + 5 * r for r in range(size)]
    found["uneven"] = kept(top(model, loss, [shards(data, sizes)[rank]], k=2, tol=1e-6))
    sizes = [0, *[7] * (size - 1)]
    found["without"] = kept(top(model, loss, [] if rank == 0 else [shards(data, sizes)[rank]], tol=1e-6))
    found["micro"] = kept(top(model, loss, shards(mine[0], [3, 5]), tol=1e-6))
    failures = {"raises in the middle": (30, KeyError("x")), "nan in the middle": (30, torch.nan)}
    if size == 2:  # what does not depend on the number of processes
        found["even"] = kept(top(model, loss, mine, k=2, tol=1e-6))
        found["empty"] = kept(top(model, loss, [shards(data, sizes)[rank]], tol=1e-6))
        optimizer = torch.optim.Adam(plain.parameters(), lr=0.0)
        loss(plain, data).backward()
        optimizer.step()
        optimizer.zero_grad()
        scale = inverse_root(preconditioner_of(optimizer, list(plain.parameters())))
        found["scaled"] = kept(top(model, loss, mine, scale=scale, tol=1e-6))
        found["differences"] = kept(top(model, loss, mine, method="finite_differences", tol=1e-4))
        failures |= {
            "raises at once": (1, KeyError("x")),
            "memory": (30, torch.OutOfMemoryError("not enough")),
            "nan": (1, torch.nan),
        }
    for name, (call, outcome) in failures.items():
        method = "finite_differences" if call > 1 else "auto"  # differences evaluate the loss for every product
        failing = Fails(loss, last, call, outcome)
        found[name] = attempted(
            lambda failing=failing, method=method: top(model, failing, mine, tol=1e-12, method=method)
        )

    # outside of any product: in the middle of the solver, and after it
    peers = peers_of(model)
    for name, product in (("solver", 3), ("first", 0)):

        def work(pure, product=product):
            operator = operator_of(pure, mine, Choice())
            for index in range(6):
                if rank == last and index == product:
                    raise MemoryError("in the solver")
                operator.matvec(operator.space.draw(operator.space.generator(index)))
            return top_eigenvalues_of(operator)

        found[name] = attempted(lambda work=work: isolated_together(FunctionSource(model, loss), work, peers=peers))

    def leaves_early(pure):
        operator = operator_of(pure, mine, Choice())
        for index in range(3 if rank == last else 6):
            operator.matvec(operator.space.draw(operator.space.generator(index)))
        return top_eigenvalues_of(operator)

    found["paths"] = attempted(lambda: isolated_together(FunctionSource(model, loss), leaves_early, peers=peers))

    def vote(_):
        if rank == 0:
            raise ValueError("at the very end")
        return top_eigenvalues_of

    found["vote"] = attempted(lambda: isolated_together(FunctionSource(model, loss), vote, peers=peers))
    found["again"] = kept(top(model, loss, mine, tol=1e-6))  # in step after all that
    found["untouched"] = state_of(plain) == before
    end(found)


if __name__ == "__main__":
    sys.exit(main())
