"""Ways of training that hide weights or gradients from who looks at the model: nothing can be measured there.

They are told by names, so that nothing is imported that the training does not use.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

_REMEDY = "Use fully_shard (FSDP2) or DistributedDataParallel, which are measured."

FSDP1 = (
    "FullyShardedDataParallel (FSDP1) keeps weights and gradients in flat pieces, and a forward pass waits for all "
    f"processes: nothing is measured under it. {_REMEDY}"
)
DEEPSPEED = (
    "DeepSpeed keeps weights or gradients in buffers of its own, not in the parameters: nothing is measured under it "
    f"yet. {_REMEDY}"
)
REPLICAS = (
    "DataParallelStrategy computes on copies of the model in threads: nothing is measured under it. Use "
    "DistributedDataParallel, which is measured."
)

_CLASSES = {
    "FullyShardedDataParallel": FSDP1,
    "XlaFullyShardedDataParallel": FSDP1,
    "FSDPStrategy": FSDP1,
    "XLAFSDPStrategy": FSDP1,
    "DeepSpeedEngine": DEEPSPEED,
    "DeepSpeedStrategy": DEEPSPEED,
    "DeepSpeedOptimizerWrapper": DEEPSPEED,
    "DataParallelStrategy": REPLICAS,
}
"""By the names of classes, or of what they derive from: wrappers of models and of optimizers, strategies."""

_MARKS = {"_fsdp_flattened": FSDP1, "_is_flat_param": FSDP1, "ds_id": DEEPSPEED, "_hp_mapping": DEEPSPEED}
"""By what they leave on parameters: FSDP1 on original and on flat ones, ZeRO-3 and ZeRO-1/2 on each."""

_OPTIMIZERS = "deepspeed.runtime."
"""Where DeepSpeed has the optimizers that hold the gradients; those in `deepspeed.ops` work anywhere."""

_COUNTED = ("parameters", "trainable")


def hidden(model: nn.Module, optimizers: Iterable[Any] = (), strategy: Any = None) -> str:
    """Return why weights or gradients are not to be seen in this process, with the remedy; '' if they are.

    All of DeepSpeed counts: its stages 1 and 2 leave weights whole, but take the gradients. Nothing is read, and no
    other process is asked.

    Args:
        model: The model, as it is trained: with its wrapper.
        optimizers: Its optimizers.
        strategy: The trainer's strategy, if it has one.
    """
    for found in (strategy, *optimizers, *model.modules()):
        for kind in type(found).__mro__:
            if kind.__name__ in _CLASSES:
                return _CLASSES[kind.__name__]
            if str(kind.__module__).startswith(_OPTIMIZERS):
                return DEEPSPEED
    marks = (why for parameter in model.parameters() for mark, why in _MARKS.items() if mark in vars(parameter))
    return next(marks, "")


def told(context: Mapping[str, Any], why: str) -> dict[str, Any]:
    """Return what a run says of itself, without the sizes that cannot be counted where weights are hidden.

    Args:
        context: What it would say.
        why: Why weights are hidden; '' if they are not.
    """
    return {key: value for key, value in context.items() if not (why and key in _COUNTED)}
