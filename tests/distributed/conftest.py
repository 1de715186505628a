"""Groups of processes on this machine: a scenario runs in all of them, the tests look at what it found."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCENARIOS = Path(__file__).with_name("scenarios")

LIMIT = 150
"""Seconds after which a group is taken for deadlocked and ended; each takes 5 to 15 on an idle machine."""


def _run(name, size, folder):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-W", "ignore", str(SCENARIOS / f"{name}.py")]
    logs = [(folder / f"{rank}.log").open("w+") for rank in range(size)]
    processes = []
    for rank, log in enumerate(logs):
        arguments = [str(rank), str(size), str(folder)]
        process = subprocess.Popen(
            [*command, *arguments], stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=folder
        )
        processes.append(process)
    deadlocked = False
    try:
        for process in processes:
            process.wait(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        deadlocked = True
    finally:
        for process in processes:
            process.kill()
            process.wait()
    said = []
    for rank, log in enumerate(logs):
        log.seek(0)
        said.append(f"--- process {rank}\n{log.read()[-3000:]}")
        log.close()
    if deadlocked or any(process.returncode for process in processes):
        why = "deadlocked" if deadlocked else "failed"
        return f"{name} in {size} processes {why}\n" + "\n".join(said)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


@pytest.fixture(scope="session")
def group(tmp_path_factory):
    """`group(name, size)`: what each process of a group found; a scenario runs once per size."""
    found = {}

    def run(name, size):
        if (name, size) not in found:
            found[name, size] = _run(name, size, tmp_path_factory.mktemp(f"{name}{size}"))
        if isinstance(found[name, size], str):
            pytest.fail(found[name, size], pytrace=False)
        return found[name, size]

    return run


@pytest.fixture(params=[2, 4])
def size(request):
    """The number of processes."""
    return request.param


@pytest.fixture
def problem():
    """The problem of the scenarios: model, loss, data."""
    return _common().problem


@pytest.fixture
def dense():
    """`dense(model, loss, batch)`: the Hessian as a matrix, by `torch.autograd.functional`: no code of ours."""

    def hessian(model, loss, batch):
        names = [name for name, _ in model.named_parameters()]
        shapes = [p.shape for p in model.parameters()]
        flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

        def value(flat):
            pieces = flat.split([shape.numel() for shape in shapes])
            tensors = {n: p.view(s) for n, p, s in zip(names, pieces, shapes, strict=True)}
            return loss(lambda x: torch.func.functional_call(model, tensors, (x,)), batch)

        return torch.autograd.functional.hessian(value, flat)

    return hessian


def _common():
    import importlib.util

    spec = importlib.util.spec_from_file_location("distributed_common", SCENARIOS / "common.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
