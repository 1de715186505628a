"""One training of the do-no-harm matrix, and a witness that hashes everything a measurement could change."""
# ruff: noqa: ARG002 (hooks have the signatures that Lightning calls)

import hashlib
import io
import logging
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

UPDATES = 4
"""Updates of one training: the self-test is made at the second, so two are measured by every probe."""
BATCH = 8
PROCESSES = 2
"""Processes of the cells that have several."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One setting of each kind."""

    model: str
    precision: str
    accumulation: int
    clipping: str
    wrapped: str
    probes: str
    strategy: str = "auto"

    def __str__(self) -> str:
        return " ".join(str(value) for value in asdict(self).values() if value not in ("none", "plain", "auto"))


logger = logging.getLogger("harmless.user")
"""A logger such as a user's own: what is logged twice differs."""

# --- models -----------------------------------------------------------------------------------------------------------


class _Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.inner = nn.Sequential(nn.Linear(4, 8), nn.TransformerEncoder(layer, 1, enable_nested_tensor=False))
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(self.inner(x).mean(dim=1))
        return logits


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        # cells: the layer has no kernel for half precision on the CPU
        self.cell, self.drop, self.out = nn.LSTMCell(4, 6), nn.Dropout(0.2), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = x.unbind(dim=1)
        state = self.cell(first)
        for place in others:
            state = self.cell(place, state)
        logits: Tensor = self.out(self.drop(state[0]))
        return logits


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3))


def _cnn() -> nn.Module:
    convolution = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.GELU(), nn.AdaptiveAvgPool2d(2)]
    return nn.Sequential(*convolution, nn.Flatten(), nn.Linear(16, 3))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (_mlp, (6,)),
    "cnn": (_cnn, (1, 5, 5)),
    "transformer": (_Transformer, (5, 4)),
    "lstm": (_Recurrent, (5, 4)),
}


class Module(pl.LightningModule):
    """A model of the matrix, trained by AdamW with a schedule that steps."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.net: Any = MODELS[cell.model][0]()
        self.wrapped = cell.wrapped
        if cell.wrapped == "compiled":
            self.net = torch.compile(self.net, backend="aot_eager")

    def on_fit_start(self) -> None:
        """Seed this process: Python seeds itself anew in a forked one."""
        _seed()

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the loss; log it by step and epoch."""
        x, y = batch
        x = x.to(next(self.net.parameters()).dtype) if self.wrapped != "compiled" else x
        logits = checkpoint(self.net, x, use_reentrant=False) if self.wrapped == "checkpointed" else self.net(x)
        loss = cross_entropy(logits.float(), y)
        self.log("loss", loss, on_step=True, on_epoch=True, batch_size=len(y))
        logger.warning("a loss of %d examples", len(y))
        print("a line")
        return loss

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the loss alone: several processes need it as a function."""
        return cross_entropy(self.net(batch[0]).float(), batch[1])

    def configure_optimizers(self) -> Any:
        """Return the optimizer and its schedule."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


# --- one training -----------------------------------------------------------------------------------------------------


def digest(value: Any) -> str:
    """Hash a nest of tensors, arrays and plain values by their bytes."""
    sha = hashlib.sha256()
    for part in _parts(value):
        sha.update(part)
    return sha.hexdigest()[:16]


def _parts(value: Any) -> Iterator[bytes]:
    if isinstance(value, Tensor):
        yield f"{value.dtype}{tuple(value.shape)}{value.requires_grad}".encode()
        if value.numel():
            yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, np.ndarray):
        yield value.tobytes()
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield repr(key).encode()
            yield from _parts(entry)
    elif isinstance(value, list | tuple):
        yield str(len(value)).encode()
        for entry in value:
            yield from _parts(entry)
    else:
        yield repr(value).encode()


class Witness(pl.Callback):
    """Hashes everything at every hook; comes after the monitor, which must have left no trace."""

    def __init__(self, told: Sequence[io.StringIO]) -> None:
        self.told = told
        self.seen: list[tuple[str, int, dict[str, str]]] = []

    def _see(self, hook: str, trainer: pl.Trainer, module: pl.LightningModule, batch: Any = None) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        state = {
            "weights": dict(module.named_parameters()),
            "gradients": {name: p.grad for name, p in module.named_parameters()},
            "buffers": dict(module.named_buffers()),
            "optimizer": [optimizer.state_dict() for optimizer in trainer.optimizers],
            "flags": [m.training for m in module.modules()],
            "scale": None if scaler is None else scaler.state_dict(),
            "torch": torch.get_rng_state(),
            "numpy": np.random.get_state(),  # noqa: NPY002 (the legacy stream is what a probe must not move)
            "python": random.getstate(),
            "metrics": dict(trainer.callback_metrics),
            "logged": dict(trainer.logged_metrics),
            "batch": batch,
            "records and lines": [stream.getvalue() for stream in self.told],
        }
        self.seen.append((hook, trainer.global_step, {name: digest(part) for name, part in state.items()}))

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """See what the step starts from."""
        self._see("batch start", trainer, pl_module, batch)

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """See the gradient so far."""
        self._see("after backward", trainer, pl_module)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """See the whole gradient, before clipping."""
        self._see("before step", trainer, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """See what came of it."""
        self._see("batch end", trainer, pl_module, batch)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Leave what was seen where another process finds it."""
        if trainer.world_size > 1:
            torch.save(self.seen, Path(trainer.default_root_dir) / f"seen.{trainer.global_rank}.pt")


def _seed() -> None:
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(7)


def train(cell: Cell, callbacks: Sequence[pl.Callback], folder: Path) -> list[Any]:
    """Train once from fixed seeds; return what a witness saw in this process."""
    _seed()
    torch._dynamo.reset()  # noqa: SLF001 (what one cell has compiled must not serve another)
    shape = MODELS[cell.model][1]
    count = BATCH * UPDATES * cell.accumulation * (1 if cell.strategy == "auto" else PROCESSES)
    data = TensorDataset(torch.randn(count, *shape), torch.randint(0, 3, (count,)))
    records, lines = io.StringIO(), io.StringIO()
    module, witness = Module(cell), Witness((records, lines))
    logger.propagate, logger.handlers = False, [logging.StreamHandler(records)]
    settings: dict[str, Any] = {"precision": cell.precision}
    if cell.precision == "16-mixed":
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        settings = {"plugins": [pl.plugins.MixedPrecision("16-mixed", "cpu", scaler)]}
    if cell.clipping != "none":
        settings |= {"gradient_clip_val": 0.05, "gradient_clip_algorithm": cell.clipping}
    with warnings.catch_warnings(), redirect_stdout(lines):
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, accumulate_grad_batches=cell.accumulation, log_every_n_steps=1,
            callbacks=[*callbacks, witness], default_root_dir=folder, strategy=cell.strategy,
            devices=1 if cell.strategy == "auto" else PROCESSES, **settings,
        )  # fmt: skip
        trainer.fit(module, DataLoader(data, batch_size=BATCH, shuffle=True))
    return witness.seen
