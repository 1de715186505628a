"""Silence: what a Lightning module logs, prints or tells the trainer during a replay goes nowhere.

Nothing is imported from Lightning: a module is recognized by its methods, so both import names work, and so do nested
modules of either.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from learnmech.probes.isolation.refusal import Refusal

_QUIET = ("log", "log_dict", "print", "log_grad_norm")
_FORBIDDEN = {
    "manual_backward": "training_step calls manual_backward, so its gradient is not that of one loss.",
    "lr_schedulers": "training_step steps learning-rate schedulers itself, which a replay would step too.",
}
REMEDY = "Pass loss=, a function loss(model, batch) that returns the scalar loss."


def is_lightning_module(module: nn.Module) -> bool:
    """Tell whether `module` has the interface of a LightningModule, from whichever package."""
    return all(hasattr(type(module), name) for name in ("training_step", "log_dict", "manual_backward"))


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Stand in for `log` and its kin."""


def _forbid(reason: str) -> Any:
    def refuse(*_: Any, **__: Any) -> None:
        raise Refusal(reason, REMEDY)

    return refuse


@contextmanager
def silenced(root: nn.Module) -> Iterator[None]:
    """Make `log`, `log_dict` and `print` of every LightningModule in `root` do nothing, and refuse what must not run.

    The stand-ins are attributes of the instances, put into `__dict__` past any `__setattr__` and taken out at the end.
    """
    patched: list[tuple[dict[str, Any], dict[str, Any]]] = []
    try:
        for module in root.modules():
            if is_lightning_module(module):
                state = module.__dict__
                own = {name: state[name] for name in (*_QUIET, *_FORBIDDEN) if name in state}
                patched.append((state, own))
                state.update(dict.fromkeys(_QUIET, _nothing))
                state.update({name: _forbid(reason) for name, reason in _FORBIDDEN.items()})
        yield
    finally:
        for state, own in reversed(patched):
            for name in (*_QUIET, *_FORBIDDEN):
                state.pop(name, None)
            state.update(own)


@contextmanager
def without_loggers(trainer: Any) -> Iterator[None]:
    """Give `trainer` loggers that swallow everything, `self.logger.experiment` included."""
    kept = trainer.loggers
    if not kept:
        yield
        return
    package = type(trainer).__module__.partition(".trainer")[0]
    dummy = importlib.import_module(f"{package}.loggers.logger").DummyLogger
    trainer.loggers = [dummy() for _ in kept]
    try:
        yield
    finally:
        trainer.loggers = kept
