"""Is half precision in a training step? What may be concluded from small numbers depends on it."""

from typing import Any

import torch
from torch import Tensor, nn

HALF = (torch.bfloat16, torch.float16)
LOOKED_AT = 20_000
"""Nodes of a graph that are looked at, at most: some milliseconds, once in a run. GPT-2 of 48 layers has 2 000."""


def is_coarse(model: nn.Module) -> bool:
    """Tell whether a model has weights in half precision, or is on a device whose products may be rounded to TF32."""
    parameters = list(model.parameters())
    if any(parameter.dtype in HALF for parameter in parameters):
        return True
    if not parameters or parameters[0].device.type != "cuda":
        return False
    try:
        return bool(torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32)
    except RuntimeError:  # torch refuses to answer where the newer settings of precision are in use
        return True


def computed_in_half(loss: Tensor) -> bool:
    """Tell whether anything in half precision lies between a loss and what it was computed from.

    What autocast has done is seen in the graph of the loss, which is there after the backward pass too; inside of what
    is compiled, and of reentrant checkpoints, nothing is seen.

    >>> weight = torch.ones(2, 2, requires_grad=True)
    >>> with torch.autocast("cpu"):
    ...     loss = (weight @ weight).float().sum()
    >>> computed_in_half(loss), computed_in_half((weight @ weight).sum())
    (True, False)
    """
    if loss.dtype in HALF:
        return True
    stack: list[Any] = [loss.grad_fn]
    met: set[Any] = set()
    while stack and len(met) < LOOKED_AT:
        node = stack.pop()
        if node is None or node in met:
            continue
        met.add(node)
        if any(told.dtype in HALF for told in getattr(node, "_input_metadata", ())):
            return True
        stack.extend(following for following, _ in node.next_functions)
    return False
