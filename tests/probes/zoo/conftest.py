"""The zoo: small LightningModules, each nasty in one way, and a harness that trains one with and without the monitor.

`witness` hooks come after the monitor's own and hash everything that a measurement could change, at every hook of every
step; two runs are the same if the two lists of hashes are.
"""

import random
import warnings

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers.logger import Logger, rank_zero_experiment
from torch import nn
from torch.utils.data import DataLoader, Dataset

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
        self.seen.append((hook, trainer.global_step, {key: self.digest(value) for key, value in state.items()}))

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self._see("batch_start", trainer, module, batch)

    def on_after_backward(self, trainer, module):
        self._see("after_backward", trainer, module)

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self._see("before_step", trainer, module)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self._see("batch_end", trainer, module, dict(outputs or {}))


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

    def __init__(self, witness, logger, module, trainer, error):
        self.seen, self.rows, self.direct = witness.seen, logger.rows, logger.direct
        self.module, self.trainer, self.error = module, trainer, error


@pytest.fixture
def train(digest, training_state, tmp_path):
    """`train(module class, monitor=None)`: one short training from fixed seeds."""

    def run(make, monitor=None, *, dataset=None, collate=None, epochs=2, **settings):
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(7)
        witness, logger = Witness(digest, training_state), Rows()
        module = make()
        loader = DataLoader(dataset or Noisy(), batch_size=BATCH, shuffle=True, collate_fn=collate, drop_last=True)
        error = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = pl.Trainer(
                max_epochs=epochs,
                accelerator="cpu",
                logger=logger,
                callbacks=([monitor] if monitor is not None else []) + [witness],
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                log_every_n_steps=1,
                default_root_dir=tmp_path,
                **settings,
            )
            try:
                trainer.fit(module, loader)
            except (Exception, KeyboardInterrupt, SystemExit) as caught:
                error = caught
        return Trial(witness, logger, module, trainer, error)

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

    return check


@pytest.fixture
def zoo():
    """The base class and sizes, for modules defined in tests."""
    return type("Zoo", (), {"Base": Base, "BATCH": BATCH, "FEATURES": FEATURES, "EXAMPLES": EXAMPLES, "Noisy": Noisy})
