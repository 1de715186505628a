"""What a run says of itself once: optimizer, size, precision, device, versions."""

import importlib.metadata
import platform
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

_FLAGS = ("amsgrad", "maximize", "centered")


def optimizer_name(optimizers: Sequence[Optimizer]) -> str:
    """Return the class name of the optimizer; of several, all of them, which no law takes for one."""
    return " + ".join(type(optimizer).__name__ for optimizer in optimizers)


def batch_coupling(model: nn.Module) -> str:
    """Return the layer type that makes the loss of one example depend on the others of its batch, '' for none."""
    for module in model.modules():
        # the base class of BatchNorm and SyncBatchNorm, for which torch has no public name
        if any(cls.__name__ == "_BatchNorm" for cls in type(module).__mro__):
            uses_batch = module.training or getattr(module, "running_mean", None) is None
            if uses_batch:
                return type(module).__name__
    return ""


def distributed() -> tuple[int, int]:
    """Return the rank of this process and the number of processes, (0, 1) outside distributed training."""
    group = torch.distributed
    if group.is_available() and group.is_initialized():
        return group.get_rank(), group.get_world_size()
    return 0, 1


def waits_for_others(model: nn.Module) -> bool:
    """Tell whether the model's forward pass enters a collective, so that one rank alone would wait for ever."""
    return distributed()[1] > 1 and any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())


WAITS = "SyncBatchNorm exchanges statistics with the other processes, which do not measure; pass a loss without it."


def describe(model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Any]:
    """Describe a model and its optimizers, in JSON values.

    Keys: `optimizer`, `optimizer_flags`, `model`, `parameters`, `trainable`, `dtype`, `device`, `device_name`,
    `batch_coupling`, `torch`, `python`, `learnmech`, `platform`.
    """
    parameters = list(model.parameters())
    trainable = [p for p in parameters if p.requires_grad]
    device = trainable[0].device if trainable else torch.device("cpu")
    flags = sorted({f for o in optimizers for g in o.param_groups for f in _FLAGS if g.get(f)})
    context = {
        "optimizer": optimizer_name(optimizers),
        "optimizer_flags": flags,
        "model": type(model).__name__,
        "parameters": sum(p.numel() for p in parameters),
        "trainable": sum(p.numel() for p in trainable),
        "dtype": ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in trainable})),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "batch_coupling": batch_coupling(model),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "platform": sys.platform,
        "learnmech": _version("learnmech"),
    }
    return {key: value for key, value in context.items() if value not in ("", [])}


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "uninstalled"
