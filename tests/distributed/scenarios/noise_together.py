"""A noise probe in two processes that must keep in step, for `test_noise_together.py`."""

import sys
import time

import torch
from common import begin, end, problem, recorded, state_of
from torch import nn

from learnmech.probes import GradientNoiseScale, Recorder, every

STEPS = 40


class Noted(GradientNoiseScale):
    """Notes the steps at which it watches, and fails where it is told to."""

    def __init__(self, schedule=None, fails=(), **settings):
        super().__init__(schedule, **settings)
        self.name = "gradient_noise_scale"
        self.fails, self.armed, self.measured = dict(fails), [], []

    def _maybe(self, what):
        self.fails[what] = self.fails.get(what, 0) - 1
        if self.fails[what] == 0:
            raise KeyError(f"{what} in one process")

    def arm(self, view):
        self.armed.append(view.step)
        self._maybe("arm")
        super().arm(view)

    def prepare(self, view):
        self._maybe("prepare")
        super().prepare(view)

    def measure(self, view):
        self._maybe("measure")
        found = super().measure(view)
        self.measured.append(view.step)
        return found


def train(rank, folder=None, *, probe=None, slow=0.0, budget=0.5, steps=STEPS):
    """Train for some steps; return a digest of the end."""
    plain, loss, (x, y) = problem()
    model = nn.parallel.DistributedDataParallel(plain)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    recorder = None
    if folder is not None:
        recorder = Recorder(model, optimizer, loss, [probe], sink=f"spool:{folder}", budget=budget)
        recorder.__enter__()
    if steps != STEPS:
        joining = model.join()
        joining.__enter__()
    for step in range(steps):
        time.sleep(slow)
        first = 4 * ((2 * step + rank) % 12)
        batch = (x[first : first + 4], y[first : first + 4])
        optimizer.zero_grad()
        value = loss(model, batch)
        value.backward()
        if recorder is not None and step % 2:  # told of now and then
            recorder.after_backward(batch)
        optimizer.step()
        if recorder is not None:
            recorder.after_step(batch, value)
    if steps != STEPS:
        joining.__exit__(None, None, None)  # the one that has ended takes part in the averages of the other
    if recorder is not None:
        recorder.close()
    return state_of(plain, [optimizer])


def main():
    rank, _ = begin()
    found = {"plain": train(rank)}

    def measured(name, probe, **settings):
        found[name] = {"state": train(rank, name, probe=probe, **settings), "armed": probe.armed}
        found[name]["measured"] = probe.measured
        if rank == 0:
            found[name] |= recorded(name)

    measured("budget", Noted())
    measured("slow", Noted(), slow=0.01 * rank)
    for what in ("arm", "prepare", "measure"):
        measured(f"{what} fails", Noted(fails={what: 2} if rank == 1 else {}), budget=0.9)
    uneven = {"steps": 6 + 5 * rank}
    measured("join", Noted(every(2)), **uneven)
    found["join"]["plain"] = train(rank, **uneven)
    end(found)


if __name__ == "__main__":
    sys.exit(main())
