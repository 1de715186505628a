"""A small training under the recorder, to be killed: says after each step which one it was and when.

python trainer.py SINK STEPS SECONDS_PER_STEP
"""

import sys
import time

import torch

from learnmech.probes import Recorder, Sharpness, WeightDynamics, every


def main() -> None:
    sink, steps, pace = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x = torch.randn(64, 4)
    batch = (x, x.sum(1, keepdim=True))

    def loss_fn(model, batch):
        return torch.nn.functional.mse_loss(model(batch[0]), batch[1])

    probes = [WeightDynamics(every(1)), Sharpness(every(10))]
    with Recorder(model, optimizer, loss_fn, probes, sink=sink, run="to be killed") as recorder:
        for step in range(steps):
            optimizer.zero_grad()
            loss = loss_fn(model, batch)
            loss.backward()
            optimizer.step()
            recorder.after_step(batch, loss)
            print(step, time.time(), flush=True)
            time.sleep(pace)


if __name__ == "__main__":
    main()
