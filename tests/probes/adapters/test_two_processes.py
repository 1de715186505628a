"""Trainers in two processes: measured together, recorded once, trained as without."""

import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from learnmech.probes import Recorder, Sharpness, Vitals, WeightDynamics, every

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
LIMIT = 150
"""Seconds after which the processes are taken for deadlocked; they take 20 on an idle machine."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The folder of what both processes recorded, and their weights."""
    folder = tmp_path_factory.mktemp("pair")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"TORCHELASTIC_RUN_ID": "pair", "GROUP_RANK": "0", "FOLDER": str(folder), "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-W", "ignore", str(HERE / "two_processes.py")]
    logs, processes = [folder / f"{rank}.log" for rank in range(2)], []
    for rank, path in enumerate(logs):
        (folder / f"cwd{rank}").mkdir()
        settings = {"env": os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}}
        with path.open("w") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, cwd=folder / f"cwd{rank}", **settings
            )
            processes.append(process)
    try:
        for process in processes:
            process.wait(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        pass
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(log.read_text()[-3000:] for log in logs)
    return folder, [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(2)]


@pytest.mark.parametrize("name", ["hugging", "fabric"])
def test_weights_are_those_of_a_training_without(name, pair):
    for process in pair[1]:
        assert process[name].keys() == process[f"{name} alone"].keys()
        assert all(torch.equal(value, process[f"{name} alone"][key]) for key, value in process[name].items())


SAME = ("sharpness", "grad_norm", "update_norm", "weight_norm", "batch_size", "learning_rate")


@pytest.mark.parametrize(("name", "micro_batches"), [("hugging", 1), ("twice", 2)])
def test_the_trainer_measures_what_one_process_would(name, micro_batches, pair, hugging, spool, recorded):
    """The oracle is one process with batches twice as large: the mean of two halves is the whole."""
    from learnmech.probes.huggingface import MechanicsCallback

    model = hugging.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    probes = [Sharpness(every(1), tol=1e-4), WeightDynamics(every(1)), Vitals(every(1))]
    hugging.trainer(
        MechanicsCallback(probes, sink=spool.url),
        model=model,
        more={"optimizers": (optimizer, schedule)},
        per_device_train_batch_size=8 // micro_batches,
        gradient_accumulation_steps=micro_batches,
        max_steps=4,
        max_grad_norm=0.5,
    ).train()
    found, expected = recorded(pair[0] / name), spool()
    for observable in SAME:
        assert found.values(observable) == pytest.approx(expected.values(observable), rel=1e-3), observable
    assert len(found.values("sharpness")) == 4
    assert len(found.runs) == 1
    assert {m.status.value for _, m in found.all("noise_trace")} == {"ok"}


def test_fabric_measures_what_one_process_would(pair, spool, recorded):
    """The oracle is a plain loop in one process, on the batches of both."""
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    batches = [(torch.randn(8, 5), torch.randint(3, (8,))) for _ in range(8)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    loss_fn = lambda model, batch: functional.cross_entropy(model(batch[0]), batch[1])
    probes = [Sharpness(every(1), tol=1e-4), WeightDynamics(every(1)), Vitals(every(1))]
    with Recorder(model, optimizer, loss_fn, probes, sink=spool.url, accumulation=2) as recorder:
        for index, batch in enumerate(batches, 1):
            loss = loss_fn(model, batch)
            (loss / 2).backward()
            recorder.after_backward(batch)
            if index % 2 == 0:
                optimizer.step()
                optimizer.zero_grad()
                recorder.after_step(batch, loss)
    found, expected = recorded(pair[0] / "fabric"), spool()
    for observable in SAME:
        assert found.values(observable) == pytest.approx(expected.values(observable), rel=1e-3), observable
    assert len(found.values("sharpness")) == 4
    assert {m.status.value for _, m in found.all("noise_trace")} == {"ok"}
