"""Is the loss of a batch the mean of the losses of its examples? Only then does each have a gradient of its own."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from learnmech.probes.isolation import PureLoss
from learnmech.probes.probe import TrainingView

EXACT = 1e-4
"""Relative difference of losses that rounding explains in float32: 1e-6 in a small transformer."""
COARSE = 1e-2
"""The same where half precision is in the training step. Contrastive losses of a quarter of a batch differ by log 4."""


def not_additive(view: TrainingView, pieces: Sequence[Any], sizes: Sequence[int]) -> str:
    """Say why the loss of a batch is not the mean of those of its examples; '' if it is.

    |L(batch) - sum_p (n_p / n) L(piece p)| is compared with the mean size of the losses, at the present weights and
    without dropout. Losses that compare examples with one another fail, and means over tokens of which some
    pieces hold more than others: there examples do not weigh alike.

    Args:
        view: The training, with its batch.
        pieces: Disjoint pieces of the batch.
        sizes: Examples in each.
    """

    def work(loss: PureLoss) -> tuple[float, list[float]]:
        with torch.no_grad(), _WithoutDropout():  # type: ignore[no-untyped-call] # torch's own
            return float(loss(view.batch)), [float(loss(piece)) for piece in pieces]

    whole, parts = view.isolate(work)
    shares = [size / sum(sizes) for size in sizes]
    rest = abs(whole - sum(share * part for share, part in zip(shares, parts, strict=True)))
    scale = abs(whole) + sum(share * abs(part) for share, part in zip(shares, parts, strict=True))
    if rest <= (EXACT if view.precise else COARSE) * scale / 2:
        return ""
    return (
        f"the loss of a batch is not the mean of the losses of its examples (a difference of {2 * rest / scale:.2g}): "
        "it compares them, or they do not weigh alike"
    )


class _WithoutDropout(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's own
    """Takes masks of dropout for their mean."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation is torch.ops.aten.bernoulli_.float:
            return args[0].fill_(args[1] if len(args) > 1 else 0.5)
        if operation is torch.ops.aten.native_dropout.default:
            return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
        return operation(*args, **(kwargs or {}))
