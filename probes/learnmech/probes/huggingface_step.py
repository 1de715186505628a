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
    own = vars(trainer)
    found = own.get("training_step")  # of another callback, if it is one of ours
    watched = found if isinstance(found, _Watched) else _Watched(trainer.training_step, found)
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


class _Watched:
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


def _defined(trainer: Trainer, name: str) -> Any:
    """Return what the trainer has under a name, apart from ourselves."""
    found = inspect.getattr_static(trainer, name)
    if isinstance(found, _Watched):
        return inspect.getattr_static(type(trainer), name) if found.before is None else found.before
    return found


def loss_of(trainer: Trainer) -> LossFunction:
    """Return the mean loss of a batch as the trainer computes it: label smoothing and `compute_loss_func` included.

    Trainers that derive from it count, log or generate in their own `compute_loss` or `training_step`, outside of the
    model: only `Trainer`'s are known to leave nothing behind.
    """
    changed = [
        name
        for name in ("compute_loss", "training_step", "compute_loss_context_manager")
        if _defined(trainer, name) is not inspect.getattr_static(Trainer, name)
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
