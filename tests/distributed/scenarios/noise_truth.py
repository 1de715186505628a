"""Noise from two processes at fixed weights, for `test_noise_truth.py`."""

import sys
from pathlib import Path

import torch
from common import begin, end
from torch import nn

from learnmech.probes import GradientNoiseScale, Recorder, every

sys.path.insert(0, str(Path(__file__).parents[2] / "probes" / "noise"))
import heads

SIZE = 8  # of the batch of each process
MEASUREMENTS, HALF_LIFE = 26, 13.0  # two pieces tell less of tr Sigma than four: windows are longer


def truth(rank, name):
    """What `heads.judged` does, with the two processes as the pieces."""
    task = getattr(heads, name)(2 * SIZE)
    model = nn.parallel.DistributedDataParallel(task.model)
    generator = torch.Generator().manual_seed(100 + rank)
    runs = []
    for run in range(heads.RUNS):
        probe = GradientNoiseScale(every(1), half_life=HALF_LIFE)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        folder = f"{name}{run}"
        with Recorder(model, optimizer, task.loss, [probe], sink=f"spool:{folder}", strict=True) as recorder:
            for _ in range(MEASUREMENTS):
                optimizer.zero_grad()
                batch = task.draw(generator, SIZE)
                task.loss(model, batch).backward()
                recorder.after_backward(batch)
                optimizer.step()
                recorder.after_step(batch)
        if rank == 0:
            runs.append(heads.windows_of(folder, probe))
    if rank != 0:
        return None
    found = heads.verdict(task.truth, [windows for windows, _ in runs], 2 * SIZE)
    return found | {"methods": {method for _, methods in runs for method in methods}}


def main():
    rank, _ = begin()
    end({name: truth(rank, name) for name in ("gaussian", "network")})


if __name__ == "__main__":
    sys.exit(main())
