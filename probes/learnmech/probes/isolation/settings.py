"""Scalars that a training step may turn: learning rates in the optimizer, a stop flag on the trainer, frozen flags."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from learnmech.probes.isolation.outward import stop


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
    """Put the parameter groups and every setting of each back at the end."""
    kept = []
    groups = [(optimizer, list(optimizer.param_groups)) for optimizer in optimizers]
    for _, found in groups:
        for group in found:
            noted = _note_group(group)
            numbers = {k: (v._version, v.detach().clone()) for k, v in noted.items() if isinstance(v, Tensor)}
            kept.append((group, noted, numbers))
    try:
        yield
    finally:
        for optimizer, found in groups:
            if len(optimizer.param_groups) != len(found):  # a step that adds parameters
                optimizer.param_groups[:] = found
        for group, noted, numbers in kept:
            _put_back_group(group, noted, numbers)


@contextmanager
def optimizers_at_rest(optimizers: Iterable[Optimizer], twins: Mapping[int, Tensor]) -> Iterator[None]:
    """Let optimizers hold stand-ins of their parameters, and refuse their steps: weights are the training's to change.

    Args:
        optimizers: The optimizers.
        twins: Stand-ins by the identity of the parameter.
    """
    kept = []
    try:
        for optimizer in optimizers:
            groups = [(group, group["params"]) for group in optimizer.param_groups]
            kept.append((optimizer, groups, optimizer.__dict__.get("step")))  # schedulers put a wrapper there
            for group, params in groups:
                group["params"] = [twins.get(id(parameter), parameter) for parameter in params]
            optimizer.__dict__["step"] = _no_step
        yield
    finally:
        for optimizer, groups, step in reversed(kept):
            optimizer.__dict__.pop("step", None)
            if step is not None:
                optimizer.__dict__["step"] = step
            for group, params in groups:
                group["params"] = params


def _no_step(*_: Any, **__: Any) -> None:
    stop("steps an optimizer")


@contextmanager
def gradients_kept(model: nn.Module) -> Iterator[None]:
    """Put the very `.grad` of every parameter back at the end (`optimizer.zero_grad()` inside a step)."""
    kept = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, gradient in kept:
            if parameter.grad is not gradient:
                parameter.grad = gradient


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
