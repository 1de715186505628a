"""Scalars that a training step may turn: learning rates in the optimizer, a stop flag on the trainer, frozen flags."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def _note_group(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def _put_back_group(group: dict[str, Any], noted: dict[str, Any], numbers: dict[str, tuple[int, Tensor]]) -> None:
    for key in [key for key in group if key != "params" and key not in noted]:
        del group[key]
    for key, value in noted.items():
        if group.get(key) is not value:
            group[key] = value
    for key, (version, copy) in numbers.items():  # a learning rate kept in a tensor and changed in place
        if noted[key]._version != version:
            with torch.no_grad():
                noted[key].copy_(copy)


@contextmanager
def optimizer_settings_kept(optimizers: Iterable[Optimizer]) -> Iterator[None]:
    """Put every setting of every parameter group back at the end."""
    kept = []
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            noted = _note_group(group)
            numbers = {k: (v._version, v.detach().clone()) for k, v in noted.items() if isinstance(v, Tensor)}
            kept.append((group, noted, numbers))
    try:
        yield
    finally:
        for group, noted, numbers in kept:
            _put_back_group(group, noted, numbers)


@contextmanager
def attributes_kept(owner: object, names: Iterable[str]) -> Iterator[None]:
    """Put the named attributes of `owner` back at the end, those it has."""
    kept = {name: getattr(owner, name) for name in names if hasattr(owner, name)}
    try:
        yield
    finally:
        for name, value in kept.items():
            if getattr(owner, name, None) is not value:
                setattr(owner, name, value)


@contextmanager
def trainable_flags_kept(model: nn.Module) -> Iterator[None]:
    """Put `requires_grad` of every parameter back at the end (`toggle_optimizer`, freezing inside a step)."""
    kept = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, flag in kept:
            if parameter.requires_grad is not flag:
                parameter.requires_grad_(flag)
