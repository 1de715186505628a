"""Layers whose per-example gradients are known in closed form from their input x and the gradient d of their output."""

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from learnmech.probes.noise.per_example.forms import Dense, Form, Outer, Rows, Unsupported

Rule = Callable[[Any, Tensor, Tensor], dict[str, Form]]
"""(module, x [B, ...], d [B, ...]) -> what each of its own parameters gets."""


def batch_axis(shape: torch.Size, batch_size: int, *, sequence_first: bool) -> int:
    """Return which dimension counts examples: 0, or 1 for [T, B, ...] in a model with sequence-first layers.

    Raises:
        Unsupported: None has the size of the batch.
    """
    for axis, size in enumerate(shape[: 2 if sequence_first else 1]):
        if size == batch_size:
            return axis
    raise Unsupported(f"a tensor of shape {tuple(shape)} has no dimension of the {batch_size} examples in front")


def wide(values: Tensor, like: Tensor | None = None) -> Tensor:
    """Return values in float32, or float64 if they are, rounded first to the type that the layer computed in."""
    if like is not None and like.is_floating_point():
        values = values.to(like.dtype)
    return values if values.dtype == torch.float64 else values.float()


def _linear(module: nn.Linear, x: Tensor, d: Tensor) -> dict[str, Form]:
    x, d = wide(x, d), wide(d)
    left = d.reshape(len(d), 1, -1, module.out_features)
    return {
        "weight": Outer(left, x.reshape(len(x), 1, -1, module.in_features)),
        "bias": Dense(left.sum((1, 2))),
    }


def _convolution(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor, d: Tensor) -> dict[str, Form]:
    """Return the rule of a linear layer on patches, each of which is the input of one output position."""
    sizes, strides, dilations = module.kernel_size, module.stride, module.dilation
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    patches, d = functional.pad(wide(x, d), _padding(module), mode), wide(d)
    for dim, (size, stride, dilation) in enumerate(zip(sizes, strides, dilations, strict=True), start=2):
        patches = patches.unfold(dim, dilation * (size - 1) + 1, stride)[..., ::dilation]
    batch, groups, n = len(d), module.groups, len(sizes)
    # [B, channels, positions..., kernel...] -> [B, groups, positions, channels / groups * kernel]
    patches = patches.reshape(batch, groups, -1, *patches.shape[2:]).movedim(2, 2 + n)
    left = d.reshape(batch, groups, module.out_channels // groups, -1)
    right = patches.reshape(batch, groups, left.shape[3], -1)
    return {"weight": Outer(left.mT, right), "bias": Dense(left.sum(3).reshape(batch, -1))}


def _padding(module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> list[int]:
    if isinstance(module.padding, str):
        total = [
            dilation * (size - 1) if module.padding == "same" else 0
            for size, dilation in zip(module.kernel_size, module.dilation, strict=True)
        ]
        pairs = [(whole // 2, whole - whole // 2) for whole in total]
    else:
        pairs = [(int(side), int(side)) for side in module.padding]
    return [side for pair in reversed(pairs) for side in pair]  # the last dimension first, as `pad` wants it


def _embedding(module: nn.Embedding, index: Tensor, d: Tensor) -> dict[str, Form]:
    if module.scale_grad_by_freq:
        raise Unsupported("scale_grad_by_freq divides by counts over the whole batch")
    index, values = index.reshape(len(d), -1), wide(d).reshape(len(d), -1, module.embedding_dim)
    if module.padding_idx is not None:
        values = values.masked_fill((index == module.padding_idx)[..., None], 0.0)
    return {"weight": Rows(index, values)}


def _last_dimensions(module: nn.LayerNorm | nn.RMSNorm, x: Tensor, d: Tensor) -> dict[str, Form]:
    x, d = wide(x), wide(d)
    shape = list(module.normalized_shape)
    if isinstance(module, nn.LayerNorm):
        normal = functional.layer_norm(x, shape, eps=module.eps)
    else:
        normal = functional.rms_norm(x, shape, eps=module.eps)
    size = prod(shape)
    return {
        "weight": Dense((d * normal).reshape(len(d), -1, size).sum(1)),
        "bias": Dense(d.reshape(len(d), -1, size).sum(1)),
    }


def _group_norm(module: nn.GroupNorm, x: Tensor, d: Tensor) -> dict[str, Form]:
    x, d = wide(x), wide(d)
    normal = functional.group_norm(x, module.num_groups, eps=module.eps)
    size = (len(d), module.num_channels, -1)
    return {"weight": Dense((d * normal).reshape(size).sum(2)), "bias": Dense(d.reshape(size).sum(2))}


RULES: Mapping[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.Embedding: _embedding,
    nn.LayerNorm: _last_dimensions,
    nn.RMSNorm: _last_dimensions,
    nn.GroupNorm: _group_norm,
}
"""The rules, by layer type."""

RULED = ("weight", "bias")
"""Parameters that rules are for, by attribute; `weight_norm` puts others in their place."""

NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
"""Layers that normalize every example by itself."""

_RANKS = {nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5}


def rule_of(module: nn.Module) -> Rule | None:
    """Return the rule of a layer, None where there is none: a subclass with a forward of its own is another layer."""
    for kind, rule in RULES.items():
        if isinstance(module, kind) and type(module).forward is kind.forward and "forward" not in vars(module):
            return rule
    return None


def leading(module: nn.Module, x: Tensor) -> torch.Size:
    """Return the dimensions of a layer's input in front of those that it mixes: there the examples are counted."""
    if isinstance(module, nn.Embedding):
        return x.shape
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return x.shape[: x.dim() - len(module.normalized_shape)]
    if isinstance(module, nn.Linear):
        return x.shape[:-1]
    rank = next((rank for kind, rank in _RANKS.items() if isinstance(module, kind)), 2)
    return x.shape[:1] if x.dim() >= rank else torch.Size()


def norm_parameters(model: nn.Module, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters that belong to LayerNorm, RMSNorm and GroupNorm, to be given to `PerExample`."""
    owned = {
        id(p)
        for module in model.modules()
        if isinstance(module, NORMS) and rule_of(module) is not None
        for p in module.parameters(recurse=False)
    }
    return {name: p for name, p in parameters.items() if id(p) in owned}
