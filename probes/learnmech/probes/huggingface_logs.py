"""`log=` of `MechanicsCallback`: to a function, or to the reporters of the trainer."""

import copy
import weakref

from transformers import Trainer

from learnmech.probes.logs import Log, Logs, Paced


def logs_to(trainer: Trainer, log: bool | Log, share: float) -> Log | Logs | None:
    """Return what passes numbers on: to a function, or to the trainer's reporters for a share of the time."""
    if isinstance(log, bool):
        return Paced(_reporters(trainer), share) if log else None
    return log


def _reporters(trainer: Trainer) -> Log:
    """Return a function that tells the trainer's reporters (TensorBoard, W&B, ...), and those alone.

    `Trainer.log` also writes to the history that goes into checkpoints, and trainers that derive from it average what
    they have to say between two calls of it.
    """
    alive = weakref.ref(trainer)

    def log(values: dict[str, float], step: int) -> None:
        found = alive()
        if found is None:
            return
        state, control = copy.copy(found.state), copy.copy(found.control)
        state.global_step = step
        for callback in found.callback_handler.callbacks:
            if type(callback).__module__.startswith("transformers.integrations"):
                callback.on_log(found.args, state, control, model=found.model, logs=dict(values))

    return log
