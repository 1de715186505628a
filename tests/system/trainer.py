"""A small training under the recorder, to be killed: says after each step which one it was and when.

python trainer.py SINK STEPS SECONDS_PER_STEP [--own-handler | --fork | --on-demand]
"""

import os
import signal
import sys
import time

import torch

from learnmech.probes import Recorder, Sharpness, WeightDynamics, every, on_demand


def own_handler(number, frame):
    print("own handler", flush=True)
    sys.exit(7)


def killed_child() -> int:
    """Fork, terminate the child, and return how it ended."""
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(told, b"!")  # Python forgets signals that come before it has noticed the fork
        time.sleep(30)
        os._exit(1)
    os.read(ready, 1)
    os.kill(child, signal.SIGTERM)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    sink, steps, pace = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    if "--own-handler" in sys.argv:
        signal.signal(signal.SIGTERM, own_handler)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x = torch.randn(64, 4)
    batch = (x, x.sum(1, keepdim=True))

    def loss_fn(model, batch):
        return torch.nn.functional.mse_loss(model(batch[0]), batch[1])

    schedule = on_demand(signal.SIGUSR1) if "--on-demand" in sys.argv else every(10)
    probes = [WeightDynamics(every(1)), Sharpness(schedule)]
    with Recorder(model, optimizer, loss_fn, probes, sink=sink, run="to be killed") as recorder:
        for step in range(steps):
            optimizer.zero_grad()
            loss = loss_fn(model, batch)
            loss.backward()
            optimizer.step()
            recorder.after_step(batch, loss)
            print(step, time.time(), flush=True)
            if step == 3 and "--fork" in sys.argv:
                print("child", killed_child(), flush=True)
            time.sleep(pace)


if __name__ == "__main__":
    main()
