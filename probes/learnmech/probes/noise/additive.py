"""Is the loss of a batch the mean of the losses of its examples? Only then does each have a gradient of its own.

Asked of gradients, not of losses: where a network predicts all tokens alike, as it does before training, the mean over
tokens and the mean over examples are the same number, but their gradients are not.
"""

import enum
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from learnmech.probes.estimators.squares import square_sum

Tensors = list[Tensor]

EXACT = 1e-2
"""Largest distance of the gradient of a batch from the mean of those of its pieces, in units of their scatter. With
weights that are off by d_k it is the root of sum d_k^2: four pieces whose numbers of tokens scatter by 2 % pass."""
ROUNDED = 1e-5
"""The same in units of the gradients, for rounding: 4e-8 to 2e-7 in float32 (a transformer of two blocks, a CNN, an
MLP; new and trained)."""
COARSE = 5e-2
"""`EXACT` where half precision is in the training step: numbers of tokens that scatter by 10 % pass."""
COARSELY_ROUNDED = 1e-2
"""`ROUNDED` where half precision is in the training step: 1e-3 to 1.6e-3 under autocast to bfloat16 (the same)."""
SHOWN = 1e-1
"""Distance in units of the scatter that has to be above rounding, or else nothing can be told: that of four pieces
whose numbers of tokens scatter by 20 %."""


class Additive(enum.Enum):
    """What the gradients of a batch and of its pieces say."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"
    """They are not finite, or too much alike for rounding to tell."""
    DRAWN = "drawn"
    """They differ, but the loss draws random numbers of its own, others in the batch than in its pieces."""


def compared(
    gradient: Callable[[Any, int], Tensors],
    batch: Any,
    pieces: Sequence[Any],
    found: Sequence[Tensors],
    shares: Sequence[float],
    *,
    precise: bool,
) -> Additive:
    """Compare the gradient g of a batch with the mean sum_k c_k g_k of those of its pieces.

    |g - sum_k c_k g_k|^2 is held against the scatter sum_k c_k |g_k - mean|^2. Losses that compare examples with one
    another fail, and means over tokens of which some pieces hold more than others: there examples do not weigh alike.
    Masks of dropout are not the same in the batch and in its pieces. Where there are any, all of this is done without.
    Other random numbers (noise that the loss adds) cannot be left out: gradients that differ then say nothing.

    Args:
        gradient: Returns the gradient of a batch, with the random numbers of some number.
        batch: The batch.
        pieces: Its pieces.
        found: Their gradients. [K]
        shares: The share of each in the batch. [K]
        precise: False where half precision is in the training step.
    """
    with _WithoutDropout() as masks:  # type: ignore[no-untyped-call] # torch's own
        whole = gradient(batch, 0)
        if masks.met:
            found = [gradient(piece, 0) for piece in pieces]
    rows = [_distances(own, column, shares) for own, *column in zip(whole, *found, strict=True)]
    rest, scatter, size = torch.stack([row.to(rows[0].device) for row in rows]).sum(0).tolist()
    verdict = judged(rest, scatter, size, precise=precise)
    return Additive.DRAWN if verdict is Additive.NO and masks.drawn else verdict


def _distances(whole: Tensor, pieces: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Return the numbers that `judged` takes, of one tensor. [3]."""
    mean = mixed(pieces, shares)
    rest = square_sum(whole - mean)
    scatter, size = torch.zeros_like(rest), torch.zeros_like(rest)
    for piece, share in zip(pieces, shares, strict=True):
        scatter += share * square_sum(piece - mean)
        size += share * square_sum(piece)
    return torch.stack([rest, scatter, size])


def judged(rest: float, scatter: float, size: float, *, precise: bool) -> Additive:
    """Judge squared distances.

    Args:
        rest: |g - sum_k c_k g_k|^2.
        scatter: sum_k c_k |g_k - sum_j c_j g_j|^2.
        size: sum_k c_k |g_k|^2.
        precise: False where half precision is in the training step.
    """
    allowed, rounded = (EXACT, ROUNDED) if precise else (COARSE, COARSELY_ROUNDED)
    if not math.isfinite(rest + scatter + size):
        return Additive.UNKNOWN
    if rest > max(allowed**2 * scatter, rounded**2 * size):
        return Additive.NO
    return Additive.YES if SHOWN**2 * scatter > rounded**2 * size else Additive.UNKNOWN


def mixed(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Return sum_k c_k g_k of one tensor, in float32 at least."""
    mean = torch.zeros_like(tensors[0], dtype=torch.promote_types(tensors[0].dtype, torch.float32))
    for tensor, share in zip(tensors, shares, strict=True):
        mean.add_(tensor, alpha=share)
    return mean


class _WithoutDropout(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's own
    """Takes masks of dropout for their mean; tells whether it met any, and whether other random numbers were drawn."""

    met = drawn = False

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation is torch.ops.aten.bernoulli_.float:
            self.met = True
            return args[0].fill_(args[1] if len(args) > 1 else 0.5)
        if operation is torch.ops.aten.native_dropout.default:
            self.met = True
            return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
        if operation is torch.ops.aten.native_dropout_backward.default:
            return args[0].clone()
        self.drawn = self.drawn or _draws(operation, args, kwargs or {})
        return operation(*args, **(kwargs or {}))


def _draws(operation: Any, args: Any, kwargs: Any) -> bool:
    """Tell whether an operation draws random numbers. Attention and recurrent layers do only where they drop out."""
    if torch.Tag.nondeterministic_seeded not in getattr(operation, "tags", ()):
        return False
    for place, argument in enumerate(operation._schema.arguments):  # noqa: SLF001 (no public name)
        if argument.name in ("dropout", "dropout_p"):
            default = kwargs.get(argument.name, argument.default_value)
            return bool((args[place] if place < len(args) else default) > 0.0)
    return True
