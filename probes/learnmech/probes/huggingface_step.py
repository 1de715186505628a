"""What the Trainer of transformers does not tell its callbacks: who it is, its micro-batches, their losses."""

import functools
import inspect
import weakref
from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import Tensor
from transformers import Trainer

from learnmech.probes.isolation import LossFunction, Refusal

REMEDY = "Pass MechanicsCallback(loss=...), for instance lambda model, batch: model(**batch).loss."


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


def watch(trainer: Trainer, done: Callable[[Any, Tensor], None], failed: Callable[[BaseException], None]) -> Any:
    """See each micro-batch right after its backward pass: callbacks are called after clipping, if at all.

    Args:
        trainer: The trainer.
        done: Told of a micro-batch and its loss, divided as the trainer has divided it.
        failed: Told of an exception of the step, which passes on: the trainer tells no callback.

    Returns:
        A function that ends it.
    """
    step: Callable[..., Any] = trainer.training_step
    own = vars(trainer)

    @functools.wraps(step)
    def training_step(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        batch: Any = (
            dict(inputs) if isinstance(inputs, Mapping) else inputs
        )  # the step may take the labels out of its own
        try:
            loss = step(model, inputs, *args, **kwargs)
        except BaseException as error:
            failed(error)
            raise
        done(batch, loss)
        return loss

    before = {name: value for name, value in own.items() if name == "training_step"}
    own["training_step"] = training_step

    def unwatch() -> None:
        if own.get("training_step") is training_step:
            del own["training_step"]
            own.update(before)

    return unwatch


def loss_of(trainer: Trainer) -> LossFunction:
    """Return the mean loss of a batch as the trainer computes it: label smoothing and `compute_loss_func` included.

    Trainers that derive from it count, log or generate in their own `compute_loss` or `training_step`, outside of the
    model: only `Trainer`'s are known to leave nothing behind.
    """
    changed = [
        name
        for name in ("compute_loss", "training_step", "compute_loss_context_manager")
        if inspect.getattr_static(trainer, name) is not inspect.getattr_static(Trainer, name)
    ]
    alive = weakref.ref(trainer)  # what ends a run that was given up must not keep its trainer

    def loss(model: Any, batch: Any) -> Tensor:
        found = alive()
        if changed or found is None:
            reason = (
                f"{type(found).__name__} has {' and '.join(changed)} of its own, which may change more than a model."
            )
            raise Refusal(reason, REMEDY)
        value: Any = found.compute_loss(model, batch)  # without num_items_in_batch: the mean over this batch
        return cast("Tensor", value)

    return loss
