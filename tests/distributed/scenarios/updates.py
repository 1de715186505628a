"""Probes of updates in a recorder in every process, for `test_updates.py`."""

import sys

import torch
from common import begin, end, parallel, problem, recorded, shards, state_of

from learnmech.probes import LossChange, Recorder, Sharpness, every, is_probing
from learnmech.probes.batch_sharpness import BatchSharpness
from learnmech.probes.critical_sharpness import CriticalSharpness
from learnmech.probes.hessian_eigenvalues import HessianEigenvalues

STEPS = 6


class Unprepared(LossChange):
    """Runs out of memory in one process while it holds the weights."""

    def prepare(self, view):
        super().prepare(view)
        if torch.distributed.get_rank() == 1:
            raise torch.OutOfMemoryError("no room for a copy")


def train(rank, size, *, sizes=None, sharded=False, folder=None, probes=(), failing=None, at=None, micro=1):
    """Train on this process's share; return a digest of the end."""
    plain, loss, data = problem()
    model = parallel(plain, sharded=sharded)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    batch = shards(data, sizes or [8] * size)[rank]

    def loss_fn(model, batch):
        value = loss(model, batch) if len(batch[0]) else 0.0 * model(batch[0]).sum()
        return failing(value) if failing is not None and is_probing() else value

    recorder = None
    if folder is not None:
        recorder = Recorder(model, optimizer, loss_fn, probes, sink=f"spool:{folder}", budget=0.9)
        recorder.__enter__()
    for step in range(STEPS):
        optimizer.zero_grad()
        for part in shards(batch, [len(batch[0]) // micro] * micro):
            value = loss_fn(model, part) / micro
            value.backward()
            if recorder is not None and micro > 1:
                recorder.after_backward(part)
        given = part
        if recorder is not None and rank == size - 1 and at is not None:
            given = at(step, recorder._engine, part)
        optimizer.step()
        if recorder is not None:
            recorder.after_step(given, value)
    if recorder is not None:
        recorder.close()
    return state_of(plain, [optimizer])


def others(**settings):
    return [
        BatchSharpness(every(2), **settings),
        HessianEigenvalues(every(2), k=2, smallest=1, tol=1e-6, max_products=60, **settings),
        Sharpness(every(2), tol=1e-6),
    ]


def everything():
    return [LossChange(every(2)), CriticalSharpness(every(2), tol=0.01, forwards=20), *others()]


class Odd(dict):
    """A batch that cannot be looked into."""

    def values(self):
        raise RuntimeError("closed")


def closes(step, engine, batch):
    if step == 2:
        engine._guard.open = False  # as after three failures of the engine itself
    return batch


def switches_off(step, engine, batch):
    if step == 2:
        engine.runner.health.refuse("loss_change", "by hand")
    return batch


def forgets(step, engine, batch):
    if step == 2:
        engine._prepared, engine._prepared_at = [], step  # the weights before the update were not seen
    return batch


def loses(step, engine, batch):
    return None if step == 2 else batch


def breaks(step, engine, batch):
    if step == 2:
        engine._facts.changed = lambda update: 1 / 0  # the engine itself fails, from here on
    return batch


def odd(step, engine, batch):
    return Odd() if step == 2 else batch


def right(measured, size):
    """Runs whose numbers are compared."""
    measured("ddp", sizes=[3 + 5 * r for r in range(size)], probes=everything())
    measured("fsdp", sharded=True, probes=everything())
    if size == 2:
        measured(
            "gathered",
            sharded=True,
            probes=[LossChange(every(2), method="double_backward"), *others(method="double_backward")],
        )
    if size > 2:  # the rest does not depend on the number of processes
        return
    empty = [0, *[7] * (size - 1)]
    measured("empty", sizes=empty, probes=everything())
    differences = [LossChange(every(2), method="finite_differences"), *others(method="finite_differences")]
    measured("differences", sizes=empty, probes=differences)
    measured("micro", micro=2, probes=[LossChange(every(2))])
    measured("budget", probes=[LossChange()])


def wrong(measured, rank):
    """Runs in which one process fails."""

    def raises(value):
        if rank == 1:
            raise KeyError("in one process")
        return value

    calls = []

    def counts(value):
        calls.append(1)
        return value * (1.0 + 0.01 * len(calls) * rank)

    for name, probe in (("loss", LossChange), ("critical", CriticalSharpness), ("eigen", HessianEigenvalues)):
        measured(f"raises {name}", probes=[probe(every(1))], failing=raises)
        measured(f"nan {name}", probes=[probe(every(2))], failing=lambda v: v * (torch.nan if rank == 0 else 1.0))
    measured("raises sharded", sharded=True, probes=[LossChange(every(1))], failing=raises)
    measured("memory", probes=[Unprepared(every(1))])
    measured("memory sharded", sharded=True, probes=[Unprepared(every(1))])
    measured("remembers", probes=[CriticalSharpness(every(1))], failing=counts)
    for act in (closes, switches_off, forgets, loses, breaks, odd):
        measured(act.__name__, probes=[LossChange(every(1)), Sharpness(every(1))], at=act)


def main():
    rank, size = begin()
    found, plain = {}, {}

    def measured(name, **settings):
        trained = {key: settings[key] for key in ("sizes", "sharded", "micro") if key in settings}
        if str(trained) not in plain:
            plain[str(trained)] = train(rank, size, **trained)
        found[name] = {"same": train(rank, size, folder=name, **settings) == plain[str(trained)]}
        if rank == 0:
            found[name] |= recorded(name)

    right(measured, size)
    if size == 2:
        wrong(measured, rank)
    end(found)


if __name__ == "__main__":
    sys.exit(main())
