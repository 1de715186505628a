"""Sees calls of some modules without putting anything on them: a model stays what its owner may copy, save, script."""

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as modules

from learnmech.probes.isolation.warned import Ignored

Before = Callable[[nn.Module, Any], None]
"""(module, positional arguments)"""

After = Callable[[nn.Module, Any, Any, Any], None]
"""(module, positional arguments, arguments by name, output)"""

WARNING = re.compile("Using `torch.compile.module.` when there are global hooks")
"""It says that hooks see the wrapper of a compiled module as one more module, which here lets it pass."""


class Passing:
    """One hook before and one after the calls of all modules in the process, which lets those of other modules pass.

    Hooks of modules themselves would be in every copy, and in no file: `torch.save` and scripting fail on them.
    Measured on a CPU: 1.2 µs for the call of another module, most of it because torch leaves its short way for modules
    without hooks. Code that is compiled already runs as it is, but `torch.compile` compiles once more afterwards what
    it compiles meanwhile.

    Args:
        watched: The modules.
        before: What to do before a call. Hooks of the module itself may still put other arguments in their place.
        after: What to do after a call, before the module's own hooks may put something else in place of the output.
        failed: What to do with an error in one of them, which goes no further.
    """

    def __init__(
        self, watched: Iterable[nn.Module], before: Before, after: After, failed: Callable[[Exception], None]
    ) -> None:
        self._watched = {id(module): module for module in watched}  # kept: no other can come by its id
        self._before, self._after, self._failed = before, after, failed
        self._handles: list[Any] = []
        self._ignored: list[Ignored] = []

    def arm(self) -> None:
        """Begin to look."""
        self._ignored.append(Ignored(WARNING))
        self._handles.append(modules.register_module_forward_pre_hook(self._enter))
        self._handles.append(modules.register_module_forward_hook(self._leave, with_kwargs=True))

    def disarm(self) -> None:
        """Stop looking."""
        for handle in self._handles:
            handle.remove()
            modules._global_forward_hooks_with_kwargs.pop(handle.id, None)  # noqa: SLF001 (`remove` leaves it)
        self._handles.clear()
        while self._ignored:
            self._ignored.pop().remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        if not torch.compiler.is_compiling() and id(module) in self._watched:
            try:
                self._before(module, args)
            except Exception as error:  # noqa: BLE001 (nothing may be raised into training)
                self._failed(error)

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not torch.compiler.is_compiling() and id(module) in self._watched:
            try:
                self._after(module, args, kwargs, output)
            except Exception as error:  # noqa: BLE001 (nothing may be raised into training)
                self._failed(error)
