"""What must hold around a loss for it to be differentiated twice: eager code, kernels that have a second derivative."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def twice_differentiable(modules: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Choose kernels that double backward knows; training's own choices come back at the end.

    - Scaled dot product attention: the MATH kernel; flash and memory-efficient kernels have no second derivative.
    - `torch.compile`: eager, because compiled graphs cannot be differentiated twice (aot_autograd). Nothing is compiled
      again.
    - Recurrent layers on CUDA: without cuDNN, whose recurrent kernels have no second derivative.
    - Gradients are on even under `no_grad` or `inference_mode`.

    Args:
        modules: Modules to look through for recurrent layers.
    """
    recurrent = any(isinstance(module, nn.RNNBase) and _on_cuda(module) for module in modules)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if recurrent:
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        if "torch._dynamo" in sys.modules:  # otherwise nothing can have been compiled, and importing it takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def _on_cuda(module: nn.Module) -> bool:
    return any(parameter.is_cuda for parameter in module.parameters(recurse=False))
