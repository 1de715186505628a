"""AdamW on a character transformer, through Lightning: weights settle at one angle per step."""

import logging
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.utils.data import DataLoader

from learnmech.lab.char_transformer import CharTransformer, Shape, next_character_loss
from learnmech.lab.settings import Language
from learnmech.lab.stdlib_text import VOCABULARY, RandomWindows, encode, standard_library
from learnmech.probes import GradientNoiseScale, Sharpness, WeightDynamics, every
from learnmech.probes.lightning import MechanicsMonitor

NAME = "stdlib-adamw"


class CharacterModel(pl.LightningModule):
    """A character transformer trained with AdamW: decay on matrices, none on the gains of norms.

    Args:
        settings: Sizes and hyperparameters.
        seed: Seed of the weights.
    """

    def __init__(self, settings: Language, seed: int = 0) -> None:
        super().__init__()
        self.settings = settings
        shape = Shape(VOCABULARY, context=settings.context, width=settings.width, hidden=settings.hidden)
        self.network = CharTransformer(shape, seed)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002 (Lightning's names)
        """Return the loss of one batch of windows."""
        return next_character_loss(self.network, batch)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Make AdamW with one group for matrices and one for gains."""
        matrices = [p for p in self.network.parameters() if p.dim() >= 2]
        gains = [p for p in self.network.parameters() if p.dim() < 2]
        groups = [
            {"params": matrices, "weight_decay": self.settings.weight_decay},
            {"params": gains, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.settings.learning_rate, betas=(0.9, 0.99))


def batches(settings: Language, seed: int = 0) -> DataLoader[tuple[Tensor, Tensor]]:
    """Return the batches of the whole training, each of independently drawn windows."""
    windows = RandomWindows(
        encode(standard_library(settings.characters)),
        context=settings.context,
        batch=settings.batch,
        steps=settings.steps,
        seed=seed,
    )
    return DataLoader(windows, batch_size=None)


class _Progress(pl.Callback):
    def __init__(self, tell: Callable[[int, float], None]) -> None:
        self._tell = tell

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002 (Lightning's names)
        outputs: Any,
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        if trainer.global_step % 10 == 0:
            self._tell(trainer.global_step, float(outputs["loss"]))


def train(
    settings: Language, *, sink: str, seed: int = 0, project: str = "demo", progress: Callable[[int, float], None]
) -> str:
    """Train and measure.

    Args:
        settings: What to train.
        sink: Where the measurements go.
        seed: Seed of the batches and of the weights.
        project: Project of the run.
        progress: Told the updates done and the loss before the last one, now and then.

    Returns:
        The run's id.

    Raises:
        RuntimeError: The monitor took no part in it.
    """
    model, loader = CharacterModel(settings, seed), batches(settings, seed)
    monitor = MechanicsMonitor(
        [
            WeightDynamics(every(settings.every_weights), per_parameter=True),
            GradientNoiseScale(every(settings.every_noise), source="split"),  # the law needs pairs of batches
            Sharpness(every(settings.every_sharpness)),
        ],
        sink=sink,
        run=NAME,
        project=project,
        tags={"seed": str(seed), "data": "source of Python's standard library"},
        full_batch=False,
        dataset_size=settings.characters - settings.context,  # places a window can begin at
        tokens_per_sample=settings.context,
    )
    with quiet():
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=settings.steps,
            max_epochs=1,
            callbacks=[monitor, _Progress(progress)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        with _interruptible():
            trainer.fit(model, loader)
    if monitor.run_id is None:
        raise RuntimeError("the monitor never began: it was not told of the start of the training")
    return monitor.run_id


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C out of Lightning, which turns it into an exit and ignores further ones: the caller has to tidy up."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        signal.signal(signal.SIGINT, before)
        raise KeyboardInterrupt from None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's tips, hardware reports and advice about workers away from a terminal with a bar of ours."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric|lightning)\b")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
