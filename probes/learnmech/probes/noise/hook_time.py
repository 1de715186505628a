"""How long hooks hold up the training: what they do happens within its own forward and backward passes."""

import time
from collections.abc import Callable
from typing import Any, cast

import torch


class HookTime:
    """Adds up the host time that hooks take.

    Measured on a CPU: 0.25 µs for a hook, besides what it does. A hook does nothing while code is compiled or traced.
    Whoever saves a tensor with a hook is not warned that hooks are left out.

    Attributes:
        seconds: All of it so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def of(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        """Return the hook with its time taken."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            if inert():
                return None
            begin = time.perf_counter()
            try:
                return hook(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - begin

        cast("Any", timed).__torch_unserializable__ = True
        return timed


def inert() -> bool:
    """Tell whether code is being compiled or traced: what runs then is no training."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None  # noqa: SLF001 (no public name)
