"""Hooks that collect what each use of a parameter contributes to its gradient, in one forward and backward pass."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from learnmech.probes.noise.hook_time import HookTime
from learnmech.probes.noise.per_example.forms import Form, Unsupported
from learnmech.probes.noise.per_example.gathering import Gathering
from learnmech.probes.noise.per_example.layer_calls import LayerCalls
from learnmech.probes.noise.per_example.parameter_uses import ParameterUses
from learnmech.probes.noise.per_example.passing import Passing
from learnmech.probes.noise.per_example.watched import in_backward, recomputing, tensors, watched

Complete = Callable[[str, list[Form], Tensor], None]
"""(parameter, forms of all its uses, its gradient), called once for a parameter when its gradient is complete."""


class Collector:
    """Hooks on calls of layers, on nodes of the graph and on parameters.

    A layer with a rule is seen by its input and the gradient of its output; other uses of parameters by their nodes,
    which are searched for whenever the forward pass of a module with children ends. A parameter's own hook comes last:
    all its uses have been seen by then, or never will be.

    Args:
        model: The model.
        parameters: The parameters to collect for, by name.
        batch_size: Examples in the batch.
        complete: What to do with a complete parameter.
        anew: What to do where all that was complete has been thrown away.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, Tensor],
        batch_size: int,
        complete: Complete,
        anew: Callable[[], None],
    ) -> None:
        found = watched(model, parameters)
        self._model = model
        self._parameters = dict(parameters)
        self._tell, self._tell_anew = complete, anew
        self._time = HookTime()
        self._all = Gathering(found, batch_size)
        self._uses = ParameterUses(found, self._parameters, self._all, self._time)
        self._layers = LayerCalls(found, self._parameters, self._all, self._uses, self._time)
        modules = [model, *(module for module, *_ in found.layers), *found.searched]
        self._passing = Passing(
            modules, self._time.of(self._layers.before), self._time.of(self._after), self._all.failed
        )
        self._completed: set[str] = set()
        self._handles: list[Any] = []

    @property
    def reason(self) -> str:
        """Why nothing of the measurement can be used, '' if it can."""
        return self._all.reason

    @property
    def uncovered(self) -> dict[str, str]:
        """Parameters without a result, and why."""
        return self._all.uncovered

    @property
    def half(self) -> bool:
        """Some gradient of a result came in 16 bits."""
        return self._all.half

    @property
    def seconds(self) -> float:
        """Host time that the hooks have taken."""
        return self._time.seconds

    def arm(self) -> None:
        """Put the hooks in place."""
        if not self._parameters:
            return
        self._passing.arm()
        for name, parameter in self._parameters.items():
            hookable: Any = parameter  # torch leaves register_hook untyped
            self._handles.append(hookable.register_hook(self._time.of(self._completing(name))))

    def disarm(self) -> None:
        """Take all hooks away and let go of everything."""
        self._passing.disarm()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._all.close()
        self._forget()

    def safely(self, names: Iterable[str], device: str = "cpu") -> AbstractContextManager[None]:
        """Let nothing out: what goes wrong is a reason for some parameters, or for the whole measurement."""
        return self._all.safely(names, device)

    def _forget(self) -> None:
        self._layers.clear()
        self._uses.clear()

    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Look at the call of a module in the forward pass."""
        if self._all.idle():
            return
        if recomputing():
            self._layers.again(module, args, kwargs)
            return
        if not in_backward() and self._over():
            return
        if module in self._layers:
            self._layers.note(module, args, kwargs, output)
        if module in self._uses:
            self._uses.search(module, args, kwargs, output)
        if module is self._model and self._all.strangers:
            self._all.called(*tensors((args, kwargs)))

    def _over(self) -> bool:
        """Tell whether all gradients are there. If they have been thrown away since, as after an error, begin anew."""
        if self._completed and all(p.grad is None for p in self._parameters.values()):
            self._all.begin()
            self._forget()
            self._completed.clear()
            self._tell_anew()
        return len(self._completed) == len(self._parameters)

    def _completing(self, name: str) -> Callable[[Tensor], None]:
        def complete(gradient: Tensor) -> None:
            if self._all.ignored():
                return
            with self._all.safely([name], gradient.device.type):
                forms = self._all.forms.pop(name, [])
                if name in self._completed:
                    self.uncovered[name] = "its gradient came in parts (several backward passes, reentrant checkpoints)"
                self._completed.add(name)
                if name in self.uncovered:
                    return
                if not forms:
                    raise Unsupported("its use was not seen: it lies outside the modules that ran, or is compiled")
                self._tell(name, forms, gradient.detach())

        return complete
