"""What the Trainer of transformers does not tell its callbacks: who it is, its micro-batches, their losses."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer

from learnmech.probes.distributed.hidden import DEEPSPEED

FSDP = (
    "The FSDP of transformers' Trainer hides weights and gradients from callbacks: nothing is measured under it. Use "
    "DistributedDataParallel, or fully_shard (FSDP2) in a loop of your own with a Recorder, which are measured."
)


def calling_trainer() -> Trainer:
    """Find the trainer: it hands its callbacks everything but itself, and it is the one that calls.

    Raises:
        LookupError: Somebody else calls.
    """
    frame = inspect.currentframe()
    while frame is not None:
        found = frame.f_locals.get("self")
        if isinstance(found, Trainer):
            return found
        frame = frame.f_back
    raise LookupError("MechanicsCallback is for transformers.Trainer; in a loop of your own use a Recorder")


def hidden_by(trainer: Any) -> str:
    """Return why the trainer hides weights or gradients, of either version of FSDP; '' if it does not."""
    if trainer.is_deepspeed_enabled:
        return DEEPSPEED
    return FSDP if trainer.is_fsdp_enabled else ""


def model_of(trainer: Any) -> Any:
    """Return the model to measure, in its wrapper for data parallelism if it has one."""
    wrapped = trainer.model_wrapped  # by torch.compile, too, which must not trace what measures
    return wrapped if isinstance(wrapped, DistributedDataParallel) else trainer.model


def watch(trainer: Trainer, done: Callable[[Any, Tensor], None], failed: Callable[[BaseException], None]) -> Any:
    """See each micro-batch right after its backward pass: callbacks are called after clipping, if at all.

    Args:
        trainer: The trainer.
        done: Told of a micro-batch and its loss, divided as the trainer has divided it.
        failed: Told of an exception of the step, which passes on: the trainer tells no callback.

    Returns:
        A function that ends it.
    """
    own = vars(trainer)
    found = own.get("training_step")  # of another callback, if it is one of ours
    watched = found if isinstance(found, Watched) else Watched(trainer.training_step, found)
    own["training_step"] = watched
    listener = (done, failed)
    watched.listeners.append(listener)

    def unwatch() -> None:
        if listener in watched.listeners:
            watched.listeners.remove(listener)
        if not watched.listeners and own.get("training_step") is watched:
            del own["training_step"]
            if watched.before is not None:
                own["training_step"] = watched.before

    return unwatch


class MicroBatches:
    """What was seen of the micro-batches of an update.

    Attributes:
        batch: The last one.
    """

    def __init__(self) -> None:
        self.batch: Any = None
        self._losses: list[Tensor] = []

    def add(self, batch: Any, loss: Tensor) -> None:
        """Take note of one."""
        self.batch = batch
        self._losses.append(loss.detach())

    @property
    def loss(self) -> Tensor | None:
        """The loss of the update: the trainer has divided each by how many there are, or by all their tokens."""
        return torch.stack(self._losses).sum() if self._losses else None


class Watched:
    """A `training_step` that tells listeners of each call: one for all callbacks of a trainer.

    Args:
        step: What it calls.
        before: The trainer's own attribute that it stands for; None: its class's method.
    """

    def __init__(self, step: Callable[..., Any], before: Any) -> None:
        self._step = step
        self.before = before
        self.listeners: list[tuple[Callable[[Any, Tensor], None], Callable[[BaseException], None]]] = []
        functools.update_wrapper(self, step)

    def __call__(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Make the step, and tell."""
        # the step may take the labels out of its own
        batch: Any = dict(inputs) if isinstance(inputs, Mapping) else inputs
        try:
            loss = self._step(model, inputs, *args, **kwargs)
        except BaseException as error:
            for _, failed in list(self.listeners):
                failed(error)
            raise
        for done, _ in list(self.listeners):
            done(batch, loss)
        return loss
