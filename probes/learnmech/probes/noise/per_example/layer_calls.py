"""Calls of layers with a rule: their inputs, and the gradients of their outputs."""

from typing import Any
from weakref import WeakSet

from torch import Tensor, nn

from learnmech.probes.noise.hook_time import HookTime
from learnmech.probes.noise.per_example.forms import Unsupported
from learnmech.probes.noise.per_example.gathering import Gathering
from learnmech.probes.noise.per_example.layers import leading
from learnmech.probes.noise.per_example.parameter_uses import ParameterUses
from learnmech.probes.noise.per_example.watched import Call, LookUp, Watched, place, recomputing, saving, tensors


class LayerCalls:
    """Takes what layers contribute.

    Args:
        watched: The modules.
        parameters: The parameters by name.
        gathering: Where contributions go.
        uses: Other uses of parameters.
        time: For the hooks.
    """

    def __init__(
        self, watched: Watched, parameters: dict[str, Tensor], gathering: Gathering, uses: ParameterUses, time: HookTime
    ) -> None:
        self._layers = {id(module): (rule, names) for module, rule, names in watched.layers}
        self._sequence_first = watched.sequence_first
        self._parameters = parameters
        self._all = gathering
        self._uses = uses
        self._time = time
        self._waiting: dict[int, WeakSet[Call]] = {}

    def clear(self) -> None:
        """Forget all calls."""
        self._waiting.clear()

    def __contains__(self, module: nn.Module) -> bool:
        return id(module) in self._layers

    def before(self, module: nn.Module, args: Any) -> None:
        """Take the input of a layer that is computed again in backward, which may end within the layer."""
        own_hooks = module._forward_pre_hooks  # noqa: SLF001 (they may put other arguments in place of these)
        if not own_hooks and next(tensors(args), None) is not None:
            self.again(module, args, {})

    def again(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Take the input of a layer that is computed again."""
        if self._all.idle() or id(module) not in self._waiting or not recomputing():
            return
        with self._all.safely(self._layers[id(module)][1].values()):
            waiting = [call for call in self._waiting[id(module)] if call.x is None and not call.over]
            if len(waiting) > 1:
                raise Unsupported("its layer is called several times inside checkpointed parts")
            for call in waiting:
                call.x = _input(args, kwargs).detach()
                self._deliver(module, call)

    def note(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Note the call of a layer, and wait for the gradient of its output."""
        if not isinstance(output, Tensor) or not output.requires_grad:
            return
        names, number = self._layers[id(module)][1], self._all.round
        held = module._parameters  # noqa: SLF001 (`functional_call` puts others in their place)
        if any(held.get(attribute) is not self._parameters[name] for attribute, name in names.items()):
            return
        with self._all.safely(names.values()):
            x = _input(args, kwargs)
            self._uses.own(output, x)
            call = Call(None)
            shape = leading(module, x)
            if self._all.same_size(shape) and not x.requires_grad:
                self._all.strangers.add(place(x))
            if isinstance(module, nn.Embedding) and not self._may_be_examples(module, x, output, call):
                return
            try:
                call.axis = self._all.axis(shape)
            except Unsupported as refusal:
                call.why = str(refusal)
            if saving():
                self._all.kept = False
                self._waiting.setdefault(id(module), WeakSet()).add(call)
            else:
                call.x = x.detach()
            self._all.open.add(call)

            def gradient(d: Tensor) -> None:
                if self._all.ignored() or (call.over and number == self._all.round):
                    return
                with self._all.safely(names.values(), d.device.type):
                    self._all.current(number)
                    if call.why:
                        raise Unsupported(call.why)
                    self._all.told_apart(shape)
                    self._all.half |= d.dtype.itemsize < 4
                    call.d = d.detach()
                    self._deliver(module, call)

            hookable: Any = output  # torch leaves register_hook untyped
            hookable.register_hook(self._time.of(gradient))

    def _deliver(self, module: nn.Module, call: Call) -> None:
        if call.x is None or call.d is None:
            return
        rule, names = self._layers[id(module)]
        found = rule(module, call.x.movedim(call.axis, 0), call.d.movedim(call.axis, 0))
        call.drop()
        for attribute, name in names.items():
            self._all.add(name, found[attribute])

    def _may_be_examples(self, module: nn.Embedding, index: Tensor, output: Tensor, call: Call) -> bool:
        """Tell whether an index counts examples; if it may count positions, have the graph searched for the sum.

        Positions (such as `embed(arange(T))`) are looked up once for all examples and then added to each.
        """
        name = self._layers[id(module)][1]["weight"]
        among = (
            self._all.batch_size in index.shape[:2]
            if self._sequence_first
            else index.shape[:1] == (self._all.batch_size,)
        )
        if not among or index.dim() == 1:
            lookup = LookUp(name, module, index.detach(), output.shape, call if among else None)
            if output.grad_fn is not None:
                self._uses.follow(lookup, output.grad_fn)
        return among


def _input(args: Any, kwargs: Any) -> Tensor:
    found = next(tensors((*args, *kwargs.values())), None)
    if found is None:
        raise Unsupported("its layer was called without a tensor")
    return found
