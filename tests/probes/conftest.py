"""What tests of probes share: everything a measurement could change, as bytes, and what a run recorded, read back."""

import hashlib
import io
import pickle
import random
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from learnmech.wire.spool import batches


def _digest(value) -> bytes:
    """Hash a nest of tensors, arrays and plain values by their bytes."""
    sha = hashlib.sha256()

    def feed(item):
        if isinstance(item, torch.Tensor):
            sha.update(f"{item.dtype}{item.layout}{tuple(item.shape)}{item.requires_grad}".encode())
            item = item if item.layout is torch.strided else item.detach().to_dense()
            sha.update(
                item.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if item.numel() else b""
            )
        elif isinstance(item, np.ndarray):
            sha.update(item.tobytes())
        elif isinstance(item, dict):
            for key, entry in item.items():
                sha.update(repr(key).encode())
                feed(entry)
        elif isinstance(item, list | tuple | set):
            sha.update(str(len(item)).encode())
            for entry in item:
                feed(entry)
        else:
            sha.update(repr(item).encode())

    feed(value)
    return sha.digest()


def _state(model, optimizers=()):
    """Return everything about a training that a measurement could change."""
    return {
        "parameters": dict(model.named_parameters()),
        "gradients": {name: p.grad for name, p in model.named_parameters()},
        "buffers": dict(model.named_buffers()),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "flags": {name: m.training for name, m in model.named_modules()},
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),
        "python": random.getstate(),
    }


@pytest.fixture(autouse=True)
def _nothing_compiled():
    """What an earlier test compiled is no reason to take no examples."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@pytest.fixture
def digest():
    """`digest(value)`: a hash of tensors, arrays and plain values, bit for bit."""
    return _digest


@pytest.fixture
def training_state():
    """`training_state(model, optimizers)`: everything that a measurement could change."""
    return _state


class Recorded:
    """What one run recorded."""

    def __init__(self, folder: Path) -> None:
        self.batches = list(batches(folder))
        self.frames = [frame for batch in self.batches for frame in batch.frames]
        self.events = [event for frame in self.frames for event in frame.events]
        self.runs = {batch.run.id for batch in self.batches}
        self.attempts = sorted({batch.attempt for batch in self.batches})

    def all(self, observable, scope=""):
        """List (step, measurement) of one series in the order of recording."""
        return [
            (frame.step, m)
            for frame in self.frames
            for m in frame.measurements
            if m.observable == observable and m.scope == scope
        ]

    def values(self, observable, scope=""):
        """Return the values of one series by step."""
        return {step: m.value for step, m in self.all(observable, scope)}

    def kinds(self):
        """List the kinds of events."""
        return [event.kind for event in self.events]

    def of_kind(self, kind):
        """List the events of a kind."""
        return [event for event in self.events if event.kind == kind]

    @property
    def context(self):
        """The context of the run."""
        return self.batches[0].run.context


@pytest.fixture
def recorded():
    """`recorded(folder)`: what is in a spool."""
    return Recorded


@pytest.fixture
def spool(tmp_path, recorded):
    """`spool.url` for a recorder or a monitor, `spool()` for what it recorded."""

    class Spool:
        url = f"spool:{tmp_path}/spool"

        def __call__(self):
            return recorded(tmp_path / "spool")

    return Spool()


@pytest.fixture
def spools(tmp_path, recorded):
    """`spools()`: one spool after another."""
    names = iter("abcdefgh")

    class Spool:
        def __init__(self):
            self.folder = tmp_path / next(names)
            self.url = f"spool:{self.folder}"

        def __call__(self):
            return recorded(self.folder)

    return Spool


@pytest.fixture
def picklable():
    """`picklable(value)`: the value after a pickle and an unpickle."""

    def trip(value):
        buffer = io.BytesIO()
        pickle.dump(value, buffer)
        buffer.seek(0)
        return pickle.load(buffer)

    return trip


@pytest.fixture
def eager_probes():
    """Every probe at every step: the most that a run can be disturbed."""
    from learnmech.probes import GradientNoiseScale, Sharpness, Symmetries, Vitals, WeightDynamics, every

    def make(**settings):
        return [
            Sharpness(every(1), max_products=4, **settings),
            GradientNoiseScale(every(1)),
            WeightDynamics(every(1)),
            Symmetries(every(1)),
            Vitals(every(1)),
        ]

    return make


@pytest.fixture
def namespace():
    """A plain object to hang things on."""
    return types.SimpleNamespace()
