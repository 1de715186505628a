"""Bad input to the noise of processes, for `test_noise_bad_input.py`: in one process only, where that is possible."""

import math
import sys

import torch
import torch.distributed as dist
from common import begin, end, recorded, state_of
from torch import nn

from learnmech.probes import GradientNoiseScale, Recorder, every

STEPS = 7
FROM = 3
"""The step at which something happens in the cases in which it does not from the first."""


class Net(nn.Module):
    """A part may not be used, another may come later."""

    def __init__(self):
        super().__init__()
        self.hidden, self.head, self.other = nn.Linear(5, 6), nn.Linear(6, 1), nn.Linear(6, 1)
        self.late = None

    def forward(self, x, other=True):
        x = torch.tanh(self.hidden(x))
        found = self.head(x) + (self.other(x) if other else 0)
        return found if self.late is None else found + self.late(x)


class Case:
    """An ordinary training; others change something in the second process."""

    find_unused = False
    size = 8

    def batch(self, rank, step):
        generator = torch.Generator().manual_seed(100 * rank + step)
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
        return draw(self.size, 5), draw(self.size, 1)

    def loss(self, model, batch, rank):
        return (model(batch[0]) - batch[1]).square().mean()

    def before(self, step, plain, optimizer):
        pass

    def after_backward(self, plain):
        pass


class Infinite(Case):
    def batch(self, rank, step):
        x, y = super().batch(rank, step)
        return x, y + (math.inf if rank == 1 and step >= FROM else 0.0)


class Zero(Case):
    """One process has nothing to learn from, such as a batch of padding."""

    def loss(self, model, batch, rank):
        return super().loss(model, batch, rank) * (0.0 if rank == 1 else 1.0)


class AllZero(Case):
    def loss(self, model, batch, rank):
        return 0.0 * super().loss(model, batch, rank)


class Unused(Case):
    find_unused = True

    def loss(self, model, batch, rank):
        return (model(batch[0], rank == 0) - batch[1]).square().mean()


class One(Case):
    size = 1


class Added(Case):
    """New parameters, which data parallelism does not know; training averages them by hand."""

    averages = True

    def before(self, step, plain, optimizer):
        if step == FROM:
            torch.manual_seed(1)
            plain.late = nn.Linear(6, 1).double()
            optimizer.add_param_group({"params": list(plain.late.parameters())})

    def after_backward(self, plain):
        if plain.late is not None and self.averages:
            for p in plain.late.parameters():
                dist.all_reduce(p.grad)
                p.grad /= dist.get_world_size()


class AddedAndForgotten(Added):
    """The same without the average: what every process has is another gradient."""

    averages = False


CASES = (Case, Infinite, Zero, AllZero, Unused, One, Added, AddedAndForgotten)


def train(rank, case, folder=None):
    torch.manual_seed(0)
    plain = Net().double()
    model = nn.parallel.DistributedDataParallel(plain, find_unused_parameters=case.find_unused)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    recorder = None
    if folder is not None:
        loss_fn = lambda model, batch: case.loss(model, batch, rank)
        recorder = Recorder(model, optimizer, loss_fn, [GradientNoiseScale(every(1))], sink=f"spool:{folder}")
        recorder.__enter__()
    truth = []
    for step in range(STEPS):
        case.before(step, plain, optimizer)
        optimizer.zero_grad()
        batch = case.batch(rank, step)
        if folder is None:
            truth.append(truth_of(plain, case, step))
        case.loss(model, batch, rank).backward()
        case.after_backward(plain)
        if recorder is not None:
            recorder.after_backward(batch)
        optimizer.step()
        if recorder is not None:
            recorder.after_step(batch)
    if recorder is not None:
        recorder.close()
    return state_of(plain, [optimizer]), truth


def truth_of(plain, case, step):
    """tr Sigma and |G|^2 from the gradients of both processes' batches, one after the other in this process."""
    rows = []
    for rank in range(2):
        loss = case.loss(plain, case.batch(rank, step), rank)
        grads = torch.autograd.grad(loss, list(plain.parameters()), allow_unused=True)
        pairs = zip(plain.parameters(), grads, strict=True)
        rows.append(torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for p, g in pairs]))
    rows = torch.stack(rows)
    trace = case.size * float(rows.var(dim=0).sum())
    return trace, float(rows.mean(dim=0).square().sum()) - trace / (2 * case.size)


def main():
    rank, _ = begin()
    found = {}
    for kind in CASES:
        name = kind.__name__
        plain, truth = train(rank, kind())
        state, _ = train(rank, kind(), folder=name)
        found[name] = {"state": state, "plain": plain, "truth": truth}
        if rank == 0:
            found[name] |= recorded(name)
    dist.barrier()
    end(found)


if __name__ == "__main__":
    sys.exit(main())
