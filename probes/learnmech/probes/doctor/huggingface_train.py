"""`Trainer.train` of transformers: nothing saved or reported, our callback, an end after some dozens of updates."""

import functools
import inspect
from types import ModuleType
from typing import Any

from learnmech.probes.doctor.session import Session, Stop

EPOCHS = 1_000
"""Epochs that no dry run reaches; finite, because schedules are computed from them."""


def patch(module: ModuleType, session: Session) -> None:
    """Make every `Trainer` of `transformers.trainer` one of the dry run; a `Recorder` follows it.

    Args:
        module: The module.
        session: The dry run.
    """
    trainer: Any = module.Trainer
    init, train = trainer.__init__, trainer.train
    signature = inspect.signature(init)

    @functools.wraps(init)
    def dry_init(self: Any, *args: Any, **kwargs: Any) -> None:
        if session.over:
            raise Stop
        given = signature.bind(self, *args, **kwargs)
        if given.arguments.get("args") is None:
            given.arguments["args"] = module.TrainingArguments(str(session.folder))
        _settle(given.arguments["args"], session)  # now: the folder of the checkpoints is made in there
        init(*given.args, **given.kwargs)

    @functools.wraps(train)
    def dry_train(self: Any, resume_from_checkpoint: Any = None, **kwargs: Any) -> None:
        if session.over:
            raise Stop
        from transformers import __version__

        from learnmech.probes.huggingface import MechanicsCallback

        session.facts["trainer"] = f"transformers {__version__}"
        if resume_from_checkpoint:
            session.changes.append("the training begins anew, not at a checkpoint")
        for callback in list(self.callback_handler.callbacks):
            if type(callback).__module__.startswith("transformers.integrations"):
                self.remove_callback(callback)
        callbacks = self.callback_handler.callbacks
        if not any(isinstance(callback, MechanicsCallback) for callback in callbacks):
            self.add_callback(MechanicsCallback(sink=session.sink))
            session.facts["unmeasured"] = "callbacks=[MechanicsCallback()] of learnmech.probes.huggingface"
        train(self, **kwargs)

    trainer.__init__, trainer.train = dry_init, dry_train


def _settle(args: Any, session: Session) -> None:
    """Change the arguments of a training as a dry run needs them."""
    no = type(args.save_strategy)("no")
    args.save_strategy, args.output_dir, args.load_best_model_at_end = no, str(session.folder), False
    args.eval_strategy = type(args.eval_strategy)("no")
    args.disable_tqdm = True
    if args.max_steps > 0:
        args.max_steps = max(args.max_steps, 100 * EPOCHS)
    args.num_train_epochs = max(args.num_train_epochs, EPOCHS)
    if args.n_gpu > 1:
        args._n_gpu = 1  # noqa: SLF001 (there is no public way to leave other devices alone)
        session.changes.append("one device instead of several")
