"""A small training under the recorder, to be killed: says after each step which one it was and when.

python trainer.py SINK STEPS SECONDS_PER_STEP [--own-handler | --chained | --fork | --on-demand | --slow | --thread |
--blocked]
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time

import torch

from learnmech.probes import Recorder, Sharpness, WeightDynamics, every, is_probing, on_demand

LOCK = threading.Lock()


def own_handler(number, frame):
    print("own handler", flush=True)
    sys.exit(7)


def chain() -> None:
    """Install a handler that calls the one from before, and saves a checkpoint."""
    before = signal.getsignal(signal.SIGTERM)

    def handler(number, frame):
        if callable(before):
            before(number, frame)
        print("checkpoint saved", flush=True)
        sys.exit(7)

    signal.signal(signal.SIGTERM, handler)


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


def block() -> None:
    """Wait in C for ever: a mutex is locked twice, and no signal interrupts that."""
    c, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(128)
    c.pthread_mutex_lock(mutex)
    c.pthread_mutex_lock(mutex)


def logger(values, step):
    with LOCK:
        pass


def main() -> None:
    sink, steps, pace = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    if "--own-handler" in sys.argv:
        signal.signal(signal.SIGTERM, own_handler)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x = torch.randn(64, 4)
    batch = (x, x.sum(1, keepdim=True))
    reached, measuring = [0], threading.Event()
    # a loss that prints is not measured
    threading.Thread(target=lambda: measuring.wait() and print("measuring", flush=True), daemon=True).start()

    def loss_fn(model, batch):
        if "--slow" in sys.argv and is_probing() and reached[0] > 5:
            measuring.set()
            time.sleep(60)
        return torch.nn.functional.mse_loss(model(batch[0]), batch[1])

    schedule = on_demand(signal.SIGUSR1) if "--on-demand" in sys.argv else every(10)
    probes = [WeightDynamics(every(1)), Sharpness(schedule)]

    def train(recorder):
        for step in range(steps):
            reached[0] = step
            optimizer.zero_grad()
            loss = loss_fn(model, batch)
            loss.backward()
            optimizer.step()
            recorder.after_step(batch, loss)
            print(step, time.time(), flush=True)
            if step == 3 and "--fork" in sys.argv:
                print("child", killed_child(), flush=True)
            if step == 3 and "--blocked" in sys.argv:
                with LOCK:
                    block()
            time.sleep(pace)

    with contextlib.ExitStack() as stack:
        recorder = stack.enter_context(
            Recorder(model, optimizer, loss_fn, probes, sink=sink, run="to be killed", log=logger)
        )
        if "--blocked" in sys.argv:
            stack.enter_context(Recorder(model, optimizer, loss_fn, [], sink=sink, run="inside"))
        if "--chained" in sys.argv:
            chain()
        if "--thread" in sys.argv:
            thread = threading.Thread(target=train, args=(recorder,))
            thread.start()
            thread.join()
        else:
            train(recorder)


if __name__ == "__main__":
    main()
