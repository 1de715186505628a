"""Where the examples of a batch have no gradients of their own, or hooks would get in the way of the training."""

import sys
from typing import Any

from torch import nn

from learnmech.probes.context import batch_coupling
from learnmech.probes.distributed.fsdp import is_shard


def refusal(model: nn.Module) -> str:
    """Say why the gradients of single examples of a model cannot be told apart at all; '' if they may be."""
    coupling = batch_coupling(model)
    if coupling:
        return f"{coupling} makes the loss of an example depend on the others of its batch"
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        return "parameters are sharded (FullyShardedDataParallel)"
    if any(is_shard(parameter) for parameter in model.parameters()):
        return "parameters are sharded"
    return ""


def unasked(model: nn.Module) -> str:
    """Say why hooks are not to be put on a model where nobody asked for them; '' if they may be.

    A compiler looks at the hooks of modules: they may have it compile once more. In a scripted module they do not run.
    A wrapper for data parallelism replaces modules, or counts on the order of its own hooks.
    """
    for name, module in model.named_modules():
        where = f"{name or 'the model'} ({type(module).__name__})"
        if is_compiled(module):
            return f"{where} is compiled"
        if isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel):
            return f"{where} runs copies of modules, or hooks of its own"
        if any(cls.__name__ == "ScriptModule" for cls in type(module).__mro__):
            return f"{where} is scripted"
    return "something in this process is compiled" if _compiling() else ""


def _compiling() -> bool:
    """Tell whether `torch.compile` has been used: what it compiles while hooks are there it would compile once more."""
    dynamo: Any = sys.modules.get("torch._dynamo.eval_frame")
    backends = getattr(dynamo, "cached_backends", {}).values()
    return any(backend is not None for backend in backends)  # None stands for functions that are left alone


def is_compiled(module: nn.Module) -> bool:
    """Tell whether calls of a module run compiled code: through `torch.compile`, `compile()`, or Lightning."""
    return (
        type(module).__name__ == "OptimizedModule"
        or getattr(module, "_compiled_call_impl", None) is not None
        or getattr(module, "_compiler_ctx", None) is not None
        or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")
    )
