"""`learnmech doctor` as a person types it, in an empty folder."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest


class Doctor:
    """Runs the command on scripts written for the purpose."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name, text):
        (self.folder / name).write_text(textwrap.dedent(text), encoding="utf-8")

    def command(self, *words):
        return [sys.executable, "-m", "learnmech.cli", "doctor", *words]

    def __call__(self, *words):
        return subprocess.run(self.command(*words), cwd=self.folder, capture_output=True, text=True, timeout=390)

    def json(self, *words):
        done = self("--json", *words)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    def left(self):
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*"))


@pytest.fixture
def doctor(tmp_path):
    return Doctor(tmp_path)


@pytest.fixture
def by_name():
    """`by_name(report)`: the probes of a report by their label."""

    def probes(report):
        return {probe["probe"]: probe for probe in report["probes"]}

    return probes


LOOP = """
    import time
    import torch
    from learnmech.probes import BaseProbe, Recorder, Sharpness, every

    HEAD
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    x = torch.randn(256, 8)
    data = torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True))
    loader = torch.utils.data.DataLoader(data, batch_size=32, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    def loss_fn(model, batch):
        return torch.nn.functional.mse_loss(model(batch[0]), batch[1])LOSS
    try:
        with Recorder(model, optimizer, loss_fnMORE) as recorder:
            for _ in range(20):
                for batch in loader:
                    optimizer.zero_grad()
                    loss = loss_fn(model, batch)
                    loss.backward()
                    optimizer.step()
                    recorder.after_step(batch, loss)
    except Exception:
        pass
    open("after", "w").close()
"""


@pytest.fixture
def loop():
    """`loop(head, loss, more)`: a script with a loop of its own, and a file `after` where it goes on after that."""

    def text(head="", loss="", more=""):
        return textwrap.dedent(LOOP).replace("HEAD", head).replace("LOSS", loss).replace("MORE", more)

    return text
