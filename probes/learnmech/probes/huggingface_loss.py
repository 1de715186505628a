"""The loss of a batch as the Trainer of transformers computes it."""

import inspect
import weakref
from typing import Any, cast

from torch import Tensor
from transformers import Trainer

from learnmech.probes.huggingface_step import Watched
from learnmech.probes.isolation import LossFunction, Refusal

REMEDY = "Pass MechanicsCallback(loss=...), for instance lambda model, batch: model(**batch).loss."


def _defined(trainer: Trainer, name: str) -> Any:
    """Return what the trainer has under a name, apart from ourselves."""
    found = inspect.getattr_static(trainer, name)
    if isinstance(found, Watched):
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
