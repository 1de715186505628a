"""The zoo: small LightningModules, each nasty in one way, and a harness that trains one with and without the monitor.

A training with every probe at every step is bit for bit the training without the monitor. Each module of the zoo keeps
state in another place that a replayed training step writes to. Compared are weights, gradients, buffers, optimizer
state, training flags, all random streams, Python state and callback metrics at four hooks of every step, every row,
every record of `logging` and every printed line: `witness` hooks come after the monitor's own and hash everything that
a measurement could change; two runs are the same if the two lists of hashes are.
"""

import contextlib
import io
import logging
import random
import warnings

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers.logger import Logger, rank_zero_experiment
from torch import nn
from torch.utils.data import DataLoader, Dataset

from learnmech.probes.lightning import MechanicsMonitor

EXAMPLES, FEATURES, BATCH = 48, 6, 8


class Noisy(Dataset):
    """Fixed examples with augmentation noise from all three global generators."""

    def __init__(self, shape=(FEATURES,), seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(EXAMPLES, *shape, generator=generator)
        self.y = torch.randint(0, 3, (EXAMPLES,), generator=generator)

    def __len__(self):
        return EXAMPLES

    def __getitem__(self, index):
        noise = 0.01 * (torch.rand(()) + float(np.random.rand()) + random.random())
        return self.x[index] + noise, self.y[index]


class Rows(Logger):
    """A logger that keeps every row, and counts what is sent to its `experiment` directly."""

    def __init__(self):
        super().__init__()
        self.rows = []
        self.direct = []

    @property
    def name(self):
        return "rows"

    @property
    def version(self):
        return "0"

    @property
    @rank_zero_experiment
    def experiment(self):
        return self

    def add_scalar(self, *args):
        self.direct.append(args)

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, params):
        """Keep none."""


class Witness(pl.Callback):
    """Hashes the training at every hook."""

    def __init__(self, digest, state):
        self.digest, self.state, self.seen = digest, state, []

    def _see(self, hook, trainer, module, extra=None):
        state = self.state(module, trainer.optimizers)
        state |= {"extra": extra, "metrics": dict(trainer.callback_metrics), "step": trainer.global_step}
        state |= {"user": getattr(module, "memory", lambda: None)(), "stop": trainer.should_stop}
        state |= {"scaler": getattr(getattr(trainer.precision_plugin, "scaler", None), "state_dict", dict)()}
        self.seen.append((hook, trainer.global_step, {key: self.digest(value) for key, value in state.items()}))

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self._see("batch_start", trainer, module, batch)

    def on_after_backward(self, trainer, module):
        self._see("after_backward", trainer, module)

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self._see("before_step", trainer, module)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self._see("batch_end", trainer, module, dict(outputs or {}))


class Records(logging.Handler):
    """Keeps what anybody but us logs."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        if not record.name.startswith("learnmech"):
            self.lines.append((record.name, record.levelname, record.getMessage()))


@contextlib.contextmanager
def heard():
    """Yield the records that reach the root logger and what is printed, filled in meanwhile."""
    records, printed = Records(), io.StringIO()
    logging.getLogger().addHandler(records)
    try:
        with contextlib.redirect_stdout(printed):
            yield records.lines, printed
    finally:
        logging.getLogger().removeHandler(records)


class Base(pl.LightningModule):
    """Batch norm, dropout and logging: what any careless measurement would disturb."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3))

    def loss_of(self, x, y):
        return nn.functional.cross_entropy(self.net(x), y)

    def training_step(self, batch, batch_idx):
        loss = self.loss_of(*batch)
        self.log("loss", loss, on_step=True, on_epoch=True, prog_bar=False)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def memory(self):
        """Python state that hashes of tensors do not show."""


class Trial:
    """One training and all that was seen of it."""

    def __init__(self, witness, logger, module, trainer, error, records, printed):
        self.seen, self.rows, self.direct = witness.seen, logger.rows, logger.direct
        self.records, self.printed = records, printed
        self.module, self.trainer, self.error = module, trainer, error


@pytest.fixture
def train(digest, training_state, tmp_path):
    """`train(module class, monitor=None)`: one short training from fixed seeds.

    `loader`, `callbacks` and `plugins` are made anew for each training, if they are given: they have state.
    """

    def run(
        make,
        monitor=None,
        *,
        dataset=None,
        collate=None,
        epochs=2,
        loader=None,
        callbacks=list,
        plugins=list,
        **settings,
    ):
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(7)
        witness, logger = Witness(digest, training_state), Rows()
        module = make()
        data = dataset or Noisy()
        batches = DataLoader(data, batch_size=BATCH, shuffle=True, collate_fn=collate, drop_last=True)
        batches = batches if loader is None else loader(data)
        error = None
        with warnings.catch_warnings(), heard() as (records, printed):
            warnings.simplefilter("ignore")
            trainer = pl.Trainer(
                max_epochs=epochs,
                accelerator="cpu",
                logger=logger,
                plugins=plugins(),
                callbacks=[*callbacks(), *([monitor] if monitor is not None else []), witness],
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                log_every_n_steps=1,
                default_root_dir=tmp_path,
                **settings,
            )
            try:
                trainer.fit(module, batches)
            except (Exception, KeyboardInterrupt, SystemExit) as caught:
                error = caught
        return Trial(witness, logger, module, trainer, error, records, printed.getvalue().splitlines())

    return run


@pytest.fixture
def same():
    """`same(a, b)`: assert that two trainings cannot be told apart, and say where they first differ."""

    def check(plain, monitored):
        for before, after in zip(plain.seen, monitored.seen, strict=False):
            assert before[:2] == after[:2]
            different = [key for key in before[2] if before[2][key] != after[2][key]]
            assert not different, f"{different} differ at {before[0]} of step {before[1]}"
        assert len(plain.seen) == len(monitored.seen) > 0
        assert repr(plain.rows) == repr(monitored.rows)
        assert plain.direct == monitored.direct
        assert plain.records == monitored.records
        assert plain.printed == monitored.printed

    return check


@pytest.fixture
def monitored(train, same, eager_probes, recorded, tmp_path):
    """Train a module without and with the monitor, compare, and return what was recorded."""

    def run(make, *, probes=None, monitor=None, **settings):
        plain = train(make, **settings)
        assert plain.error is None, plain.error
        watcher = monitor or MechanicsMonitor(probes or eager_probes(), sink=f"spool:{tmp_path}/spool")
        watched = train(make, watcher, **settings)
        assert watched.error is None, watched.error
        same(plain, watched)
        return recorded(tmp_path / "spool")

    return run


def _passed(run):
    """Assert that the replay was found true, and that curvature and noise were measured without a failure."""
    tests = run.of_kind("self_test")
    assert [event.severity for event in tests] == ["info"], [event.message for event in tests]
    assert not run.of_kind("probe_failed"), run.of_kind("probe_failed")[0].data["traceback"]
    assert len(run.all("sharpness")) >= 3
    assert len(run.all("noise_trace")) >= 3
    assert len(run.all("update_norm")) >= 3


def _refused(run, *words):
    """Assert that probes which evaluate the loss were refused with a reason, and the others went on."""
    (sharpness,) = run.all("sharpness")
    assert sharpness[1].status == "unsupported"
    assert all(word in sharpness[1].reason for word in words), sharpness[1].reason
    assert len(run.all("update_norm")) >= 3


@pytest.fixture
def passed():
    """`passed(run)`: assert that the replay was found true and nothing failed."""
    return _passed


@pytest.fixture
def refused():
    """`refused(run, *words)`: assert that the replay was refused for a reason with these words."""
    return _refused


@pytest.fixture
def zoo():
    """The base class and sizes, for modules defined in tests."""
    return type("Zoo", (), {"Base": Base, "BATCH": BATCH, "FEATURES": FEATURES, "EXAMPLES": EXAMPLES, "Noisy": Noisy})
