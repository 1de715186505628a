"""Uses of parameters outside the known layers, found in the graph, and the gradients of their results."""

from typing import Any, cast
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from learnmech.probes.noise.hook_time import HookTime
from learnmech.probes.noise.per_example.forms import Dense, Form, Rows, Unsupported
from learnmech.probes.noise.per_example.gathering import Gathering
from learnmech.probes.noise.per_example.graph import Consumer, Uses
from learnmech.probes.noise.per_example.operations import Derive, derive
from learnmech.probes.noise.per_example.watched import LookUp, Use, Watched, saving, tensors


class ParameterUses:
    """Takes what operations contribute.

    Args:
        watched: The modules.
        parameters: The parameters by name.
        gathering: Where contributions go.
        time: For the hooks.
    """

    def __init__(self, watched: Watched, parameters: dict[str, Tensor], gathering: Gathering, time: HookTime) -> None:
        self._watched = watched
        self._searched = {id(module) for module in watched.searched}
        self._parameters = parameters
        self._all = gathering
        self._time = time
        self._uses = Uses(parameters)
        self._lookups: WeakValueDictionary[str, LookUp] = WeakValueDictionary()

    def clear(self) -> None:
        """Forget all graphs."""
        self._uses.clear()

    def __contains__(self, module: nn.Module) -> bool:
        return id(module) in self._searched

    def own(self, output: Tensor, x: Tensor) -> None:
        """Leave a known layer out."""
        self._uses.own(output, [x])

    def follow(self, lookup: LookUp, node: Node) -> None:
        """Look also where the rows enter that an embedding gave."""
        target = f"{lookup.name} (look-up {id(lookup)})"
        self._lookups[target] = lookup
        self._uses.target(target, node, held=lookup)

    def search(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Search the graph of a module's output for uses of parameters outside the known layers."""
        if self._watched.only_norms and not self._all.square:
            return
        self._all.kept = self._all.kept and not saving()
        with self._all.safely(()):
            if isinstance(module, nn.MultiheadAttention):
                self._uses.inside(next(tensors(output)), tensors((args, kwargs)))
            for consumer in self._uses.walk(tensors(output)):
                lookup = self._lookups.get(consumer.path.target)
                name = consumer.path.target if lookup is None else lookup.name
                with self._all.safely([name]):
                    self._watch(consumer, name, lookup)
            self._all.turned |= self._uses.turned

    def _watch(self, consumer: Consumer, name: str, lookup: LookUp | None) -> None:
        shape = self._parameters[name].shape if lookup is None else lookup.shape
        if lookup is not None and lookup.call is not None:
            if len(consumer.shape) <= len(shape):
                return  # one number for each example, as it seemed
            lookup.call.over = True

        def axis(of: torch.Size) -> int:
            if name not in self._watched.positions_first:
                return self._all.axis(of)
            if len(of) == 3 and of[1] == self._all.batch_size:
                return 1
            raise Unsupported(f"attention worked on a tensor of shape {tuple(of)} for {self._all.batch_size} examples")

        try:
            use = Use(derive(consumer, shape, axis, saved=self._all.kept))
        except Unsupported as refusal:
            use = Use(_refusing(str(refusal)))
        self._all.open.add(use)
        result, number = consumer.shape, self._all.round  # not the node: a hook that held it would keep the graph alive

        def gradient(gradients: tuple[Tensor | None, ...]) -> None:
            d = gradients[0]
            if d is None or self._all.ignored() or (use.derive is None and number == self._all.round):
                return
            with self._all.safely([name], d.device.type):
                self._all.current(number)
                if name not in self._watched.positions_first:
                    self._all.told_apart(result)
                self._all.half |= d.dtype.itemsize < 4
                form = cast("Derive", use.derive)(d.detach())
                use.drop()
                self._all.add(name, form if lookup is None else _rows(form, lookup))

        consumer.node.register_prehook(self._time.of(gradient))


def _refusing(why: str) -> Derive:
    """Refuse once a gradient comes: what is not used for training does no harm."""

    def refuse(_: Tensor) -> Form:
        raise Unsupported(why)

    return refuse


def _rows(form: Form, lookup: LookUp) -> Form:
    """Turn the gradient of looked-up rows, the same for all examples, into what each example adds to the table."""
    if not isinstance(form, Dense) or form.moved:
        raise Unsupported("positions enter through a view")
    values = form.values.view(len(form.values), lookup.index.numel(), -1)
    padding = lookup.module.padding_idx
    index = lookup.index.reshape(1, -1).expand(len(values), -1)
    if padding is not None:
        values = values.masked_fill((index == padding)[..., None], 0.0)
    return Rows(index, values)
