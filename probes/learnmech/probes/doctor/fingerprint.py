"""The state of a training as one short string, so that two trainings can be compared update by update."""

import hashlib
import random
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""A whole number of each size: sums of these are exact, so that any change of one bit shows."""


def fingerprint(model: nn.Module, optimizers: Sequence[Optimizer]) -> str:
    """Return a hash of parameters, buffers, optimizer state and random streams.

    Tensors enter as sums of their bits taken for whole numbers: one pass on their device, and a few bytes read back.

    Args:
        model: The model.
        optimizers: Its optimizers.
    """
    sha = hashlib.sha256()
    sums = [_bits(tensor.detach()) for tensor in _tensors(model, optimizers)]
    for device in {total.device for total in sums}:
        sha.update(repr(torch.stack([total for total in sums if total.device == device]).tolist()).encode())
    sha.update(repr(random.getstate()).encode())
    sha.update(torch.get_rng_state().numpy().tobytes())
    cuda: Any = torch.cuda  # not typed
    if cuda.is_initialized():
        sha.update(cuda.get_rng_state().numpy().tobytes())
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        name, keys, *rest = numpy.random.get_state()
        sha.update(keys.tobytes() + repr((name, rest)).encode())
    return sha.hexdigest()[:16]


def _tensors(model: nn.Module, optimizers: Sequence[Optimizer]) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()
    for optimizer in optimizers:
        for state in optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))


def _bits(tensor: Tensor) -> Tensor:
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    if real.layout is not torch.strided:
        real = real.to_dense()
    return real.contiguous().reshape(-1).view(_WHOLE[real.element_size()]).sum(dtype=torch.int64)


def side_effects(model: nn.Module) -> list[str]:
    """List what a replay of the training step changes in this model, as far as its layers tell: all of it is undone."""
    modules = list(model.modules())
    kinds = [cls.__name__ for module in modules for cls in type(module).__mro__]
    norms = sum(getattr(module, "running_mean", None) is not None for module in modules)
    dropout = sum("Dropout" in type(module).__name__ and getattr(module, "p", 0) > 0 for module in modules)
    metrics = kinds.count("Metric")
    found = [
        (norms, f"running statistics ({norms} layers)"),
        (dropout, f"random numbers ({dropout} of dropout)"),
        (metrics, f"metrics ({metrics})"),
        ("LightningModule" in kinds, "what training_step logs"),
    ]
    return [words for present, words in found if present]
