"""What `module:name` stands for: something to train, made without arguments."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

EXAMPLE = """def build():
    return Net(width=64), DataLoader(data, batch_size=32)  # a LightningModule and its loader, or
    # return model, optimizer, loss_fn, batch              # what a Recorder takes, and a batch"""
"""What a factory looks like."""


class Unusable(Exception):
    """The target cannot be trained; the message says what to give instead."""


def train(target: str, data: str | None) -> None:
    """Train what `module:name` stands for, for ever: the dry run ends it.

    Args:
        target: A LightningModule class or a function that returns (module, loader) or (model, optimizer, loss_fn,
            batch), as `module:name`.
        data: The same for a function that returns the loader, or a LightningDataModule.

    Raises:
        Unusable: It cannot be built, or is nothing that can be trained.
    """
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 (as `python -m` does)
    made = _made(target)
    parts: list[Any] = list(made) if isinstance(made, tuple) else [made]
    if len(parts) == 4:
        _loop(*parts)
        return
    if len(parts) not in (1, 2) or not _is_lightning(parts[0]):
        raise Unusable(
            f"{target} returned {_said(parts)}; expected a LightningModule, alone or with its loader, or (model, "
            f"optimizer, loss_fn, batch), such as\n{EXAMPLE}"
        )
    module = parts[0]
    loader = parts[1] if len(parts) == 2 else None if data is None else _made(data)
    if loader is None and "train_dataloader" not in _overridden(module):
        raise Unusable(
            f"{target} brings no training data, and random data would say nothing. Expected --data MODULE:FUNCTION, a "
            f"function that returns the training loader or a LightningDataModule; a train_dataloader method; or a "
            f"function that returns both:\n{EXAMPLE}"
        )
    package = next(p for p in ("lightning.pytorch", "pytorch_lightning") if p in _packages(module))
    trainer = importlib.import_module(package).Trainer(accelerator="auto", max_epochs=-1)
    trainer.fit(module, loader)


def _made(target: str) -> Any:
    """Import what `module:name` names, and call it without arguments."""
    where, _, name = target.partition(":")
    try:
        maker: Any = importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is not None and (where == error.name or where.startswith(f"{error.name}.")):
            raise Unusable(f"there is no module {error.name!r} here; {sys.path[0]} was searched too") from None
        raise
    for part in name.split("."):
        if not hasattr(maker, part):
            names = ", ".join(sorted(n for n in vars(maker) if not n.startswith("_"))[:20])
            raise Unusable(f"{where} has no {name!r}; it has {names or 'no names'}")
        maker = getattr(maker, part)
    if not callable(maker):
        raise Unusable(f"{target} is {type(maker).__name__}; expected a class or a function without arguments")
    _without_arguments(target, maker)
    return maker()


def _without_arguments(target: str, maker: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(maker)
    except ValueError:  # some built-in callables do not tell
        return
    needed = [
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if needed:
        raise Unusable(
            f"{target} needs {', '.join(needed)}. Expected something that can be called without arguments: write a "
            f"function, and name that one:\n{EXAMPLE}"
        )


def _loop(model: Any, optimizer: Any, loss_fn: Any, batch: Any) -> None:
    """Train with a recorder on one batch, or on those of a loader, again and again."""
    from torch.utils.data import DataLoader

    from learnmech.probes.recorder import Recorder

    def batches() -> Iterator[Any]:
        while True:
            if isinstance(batch, DataLoader):
                yield from batch
            else:
                yield batch

    with Recorder(model, optimizer, loss_fn) as recorder:
        for given in batches():
            optimizer.zero_grad()
            loss = loss_fn(model, given)
            loss.backward()
            optimizer.step()
            recorder.after_step(given, loss)


def _packages(module: Any) -> set[str]:
    """Return the packages that the class of a module stands on, at any depth: `a.b` for `a.b.c`."""
    names = {cls.__module__ for cls in type(module).__mro__}
    return {name for full in names for name in ("lightning.pytorch", "pytorch_lightning") if full.startswith(name)}


def _is_lightning(value: Any) -> bool:
    return bool(_packages(value)) and hasattr(value, "training_step")


def _overridden(module: Any) -> set[str]:
    """Return the methods that the user's own classes define."""
    own = [
        cls
        for cls in type(module).__mro__
        if not cls.__module__.startswith(("lightning.", "pytorch_lightning", "torch"))
    ]
    return {name for cls in own for name in vars(cls)}


def _said(parts: list[Any]) -> str:
    names = ", ".join(type(part).__name__ for part in parts)
    return names if len(parts) == 1 else f"({names})"
