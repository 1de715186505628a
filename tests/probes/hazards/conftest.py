"""What fault tests share: a small LightningModule, one training of it, and a collector that fails as it is told."""

import http.server
import logging
import random
import threading
import warnings

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from learnmech.probes import GradientNoiseScale, Sharpness, Vitals, WeightDynamics, every
from learnmech.probes.engine import Engine
from learnmech.probes.lightning import MechanicsMonitor

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


class Net(pl.LightningModule):
    """Batch norm and dropout, and a hook for whatever a test wants to happen in a step."""

    def __init__(self, during=None):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, 2))
        self.during = during

    def training_step(self, batch, batch_idx):
        if self.during is not None:
            self.during(self)
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def _loader(**settings):
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(40, 4, generator=generator), torch.randint(0, 2, (40,), generator=generator))
    return DataLoader(data, batch_size=4, shuffle=True, **settings)


def _fit(callbacks=(), during=None, *, loader=None, validation=None, raises=None, **settings):
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(3)
    module = Net(during)
    settings = {
        "max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False,
    } | settings  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(callbacks=list(callbacks), **settings)
        if raises is None:
            trainer.fit(module, loader or _loader(), validation)
        else:
            with pytest.raises(raises):
                trainer.fit(module, loader or _loader(), validation)
    return module, trainer


@pytest.fixture
def fit():
    """`fit(callbacks, during)`: one training of ten steps from fixed seeds; returns module and trainer."""
    return _fit


@pytest.fixture
def loader():
    """`loader(num_workers=...)`: forty examples in ten batches."""
    return _loader


@pytest.fixture
def outcome(digest, training_state):
    """`outcome(fit(...))`: a hash of weights, optimizer, random streams and metrics at the end."""

    def hashed(fitted):
        module, trainer = fitted
        return digest([training_state(module, trainer.optimizers), dict(trainer.callback_metrics)])

    return hashed


@pytest.fixture
def monitor(spool):
    """`monitor(*more probes, sink=...)`: a monitor with the default probes at every step."""

    def make(*probes, sink=None, **settings):
        measured = [Sharpness(every(1), max_products=4), GradientNoiseScale(every(1)), WeightDynamics(every(1))]
        return MechanicsMonitor([*measured, Vitals(every(1)), *probes], sink=sink or spool.url, **settings)

    return make


@pytest.fixture
def hasty(monkeypatch):
    """Wait a tenth of a second for deliveries at the end of a run, instead of seconds."""
    finish = Engine.finish
    monkeypatch.setattr(
        Engine, "finish", lambda self, kind, message, timeout: finish(self, kind, message, min(timeout, 0.1))
    )


class Collector(http.server.ThreadingHTTPServer):
    """Answers every request as `plan` says: a status, or "hold" for an answer that comes when the test is over."""

    daemon_threads = True

    def __init__(self, plan):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.plan, self.asked, self.over = plan, 0, threading.Event()
        self.came = threading.Event()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def stop(self):
        self.over.set()
        self.shutdown()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.server.asked += 1
        self.server.came.set()
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.plan == "hold":
            self.server.over.wait(60)
            return
        if self.server.plan == "hang up":
            self.close_connection = True
            return
        self.send_response(self.server.plan)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        """Say nothing."""


@pytest.fixture
def collector():
    """`collector(plan)`: a collector on this machine that fails."""
    started = []

    def start(plan):
        started.append(Collector(plan))
        return started[-1]

    yield start
    for server in started:
        server.stop()
