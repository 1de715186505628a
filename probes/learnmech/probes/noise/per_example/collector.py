"""Hooks that collect what each use of a parameter contributes to its gradient, in one forward and backward pass."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from learnmech.probes.noise.hook_time import HookTime
from learnmech.probes.noise.per_example.forms import Dense, Form, Rows, Unsupported
from learnmech.probes.noise.per_example.graph import Consumer, Uses
from learnmech.probes.noise.per_example.layers import Rule, batch_axis, leading
from learnmech.probes.noise.per_example.operations import derive
from learnmech.probes.noise.per_example.watched import Call, LookUp, recomputing, saving, watched

Complete = Callable[[str, list[Form], Tensor], None]
"""(parameter, forms of all its uses, its gradient), called once for a parameter when its gradient is complete."""


class Collector:
    """Hooks on layers, on nodes of the graph and on parameters.

    A layer with a rule is seen by its input and the gradient of its output; other uses of parameters by their nodes,
    which are searched for whenever the forward pass of a module with children ends. A parameter's own hook comes last:
    all its uses have been seen by then, or never will be.

    Args:
        model: The model.
        parameters: The parameters to collect for, by name.
        batch_size: Examples in the batch.
        complete: What to do with a complete parameter.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, Tensor], batch_size: int, complete: Complete) -> None:
        self.reason = ""
        self.uncovered: dict[str, str] = {}
        self.half = False
        """Some gradient of a result came in 16 bits."""
        self._parameters = parameters
        self._batch_size = batch_size
        self._tell = complete
        self._watched = watched(model, parameters)
        self.uncovered.update(self._watched.refused)
        self._layers: dict[nn.Module, tuple[Rule, dict[str, str]]] = {
            module: (rule, names) for module, rule, names in self._watched.layers
        }
        self._uses = Uses(parameters)
        self._calls: dict[nn.Module, list[Call]] = {}
        self._lookups: dict[str, LookUp] = {}
        self._forms: dict[str, list[Form]] = {}
        self._completed: set[str] = set()
        self._square = False  # a tensor came with as many positions as examples
        self._kept = True  # autograd keeps what it saves, as far as was seen
        self._handles: list[Any] = []
        self._time = HookTime()

    @property
    def seconds(self) -> float:
        """Host time that the hooks have taken."""
        return self._time.seconds

    def arm(self) -> None:
        """Put the hooks in place."""
        timed = self._time.of
        for module in self._layers:
            self._handles.append(module.register_forward_pre_hook(timed(self._before), with_kwargs=True))
            # before the user's own, which may put something else in place of the output
            self._handles.append(module.register_forward_hook(timed(self._after), with_kwargs=True, prepend=True))
        self._handles += [module.register_forward_hook(timed(self._search)) for module in self._watched.searched]
        for name, parameter in self._parameters.items():
            hookable: Any = parameter  # torch leaves register_hook untyped
            self._handles.append(hookable.register_hook(timed(self._completing(name))))

    def disarm(self) -> None:
        """Take all hooks away and let go of everything."""
        for handle in self._handles:
            handle.remove()
        for name in self._forms:
            self.uncovered.setdefault(name, "its gradient did not come through autograd's ordinary way")
        for held in (self._handles, self._calls, self._lookups, self._forms):
            held.clear()
        self._uses.clear()

    @contextmanager
    def safely(self, names: Iterable[str], device: str = "cpu") -> Iterator[None]:
        """Let nothing out: what goes wrong is a reason for some parameters, or for the whole measurement."""
        try:
            autocast = torch.is_autocast_enabled(device)
            with torch.no_grad(), torch.autocast(device, enabled=False) if autocast else nullcontext():
                yield
        except Unsupported as refusal:
            self.uncovered.update(dict.fromkeys(names, str(refusal)))
        except Exception as error:  # noqa: BLE001 (nothing may be raised into training)
            self.reason = f"{type(error).__name__} at {next(iter(names), 'the graph')}: {error}"[:300]

    # --- layers ------------------------------------------------------------------------------------------------------

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Take the input of a layer that is computed again in backward."""
        if self._idle() or module not in self._layers or not recomputing():
            return
        with self.safely(self._layers[module][1].values()):
            waiting = [call for call in self._calls.get(module, ()) if call.x is None and not call.over]
            if len(waiting) > 1:
                raise Unsupported("its layer is called several times inside checkpointed parts")
            for call in waiting:
                call.x = _input(args, kwargs).detach()
                self._deliver(module, call)

    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Note the call of a layer, and wait for the gradient of its output."""
        # a module that is not among the layers is a copy, as data parallelism in threads makes them
        if self._idle() or module not in self._layers or recomputing():
            return
        if not isinstance(output, Tensor) or not output.requires_grad:
            return
        names = self._layers[module][1]
        with self.safely(names.values()):
            x = _input(args, kwargs)
            self._uses.own(output, [x])
            call = Call(None)
            if isinstance(module, nn.Embedding) and not self._may_be_examples(module, x, output, call):
                return
            shape = leading(module, x)
            call.axis = self._axis(shape)
            if saving():
                self._kept = False
            else:
                call.x = x.detach()
            self._calls.setdefault(module, []).append(call)

            def gradient(d: Tensor) -> None:
                if not self.reason and not call.over:
                    with self.safely(names.values(), d.device.type):
                        self._told_apart(shape)
                        self.half |= d.dtype.itemsize < 4
                        call.d = d.detach()
                        self._deliver(module, call)

            hookable: Any = output  # torch leaves register_hook untyped
            self._handles.append(hookable.register_hook(self._time.of(gradient)))

    def _deliver(self, module: nn.Module, call: Call) -> None:
        if call.x is None or call.d is None:
            return
        rule, names = self._layers[module]
        found = rule(module, call.x.movedim(call.axis, 0), call.d.movedim(call.axis, 0))
        call.x, call.d, call.over = None, None, True
        for attribute, name in names.items():
            self._forms.setdefault(name, []).append(found[attribute])

    def _may_be_examples(self, module: nn.Embedding, index: Tensor, output: Tensor, call: Call) -> bool:
        """Tell whether an index counts examples; if it may count positions, have the graph searched for the sum.

        Positions (such as `embed(arange(T))`) are looked up once for all examples and then added to each.
        """
        name = self._layers[module][1]["weight"]
        among = (
            self._batch_size in index.shape[:2]
            if self._watched.sequence_first
            else index.shape[:1] == (self._batch_size,)
        )
        if not among or index.dim() == 1:
            target = f"{name} (look-up {len(self._lookups)})"
            self._lookups[target] = LookUp(name, module, index.detach(), output.shape, call if among else None)
            if output.grad_fn is not None:
                self._uses.target(target, output.grad_fn)
        return among

    # --- the graph ---------------------------------------------------------------------------------------------------

    def _search(self, module: nn.Module, args: Any, output: Any) -> None:
        """Search the graph of a module's output for uses of parameters outside the known layers."""
        if self._idle() or recomputing():
            return
        if self._watched.only_norms and not self._square:
            return
        self._kept = self._kept and not saving()
        with self.safely(()):
            if isinstance(module, nn.MultiheadAttention):
                self._uses.inside(next(_tensors(output)), _tensors(args))
            for consumer in self._uses.walk(_tensors(output)):
                lookup = self._lookups.get(consumer.path.target)
                name = consumer.path.target if lookup is None else lookup.name
                with self.safely([name]):
                    self._watch(consumer, name, lookup)

    def _watch(self, consumer: Consumer, name: str, lookup: LookUp | None) -> None:
        shape = self._parameters[name].shape if lookup is None else lookup.shape
        if lookup is not None and lookup.call is not None:
            if len(consumer.shape) <= len(shape):
                return  # one number for each example, as it seemed
            lookup.call.over = True

        def axis(of: torch.Size) -> int:
            if name not in self._watched.positions_first:
                return self._axis(of)
            if len(of) == 3 and of[1] == self._batch_size:
                return 1
            raise Unsupported(f"attention worked on a tensor of shape {tuple(of)} for {self._batch_size} examples")

        pending = [derive(consumer, shape, axis, saved=self._kept)]  # it holds an input: let go after use

        def gradient(gradients: tuple[Tensor | None, ...]) -> None:
            d = gradients[0]
            if self.reason or d is None or not pending:
                return
            with self.safely([name], d.device.type):
                if name not in self._watched.positions_first:
                    self._told_apart(consumer.shape)
                self.half |= d.dtype.itemsize < 4
                form = pending.pop()(d.detach())
                self._forms.setdefault(name, []).append(form if lookup is None else _rows(form, lookup))

        self._handles.append(consumer.node.register_prehook(self._time.of(gradient)))

    def _axis(self, shape: torch.Size) -> int:
        self._square |= self._same_size(shape)
        return batch_axis(shape, self._batch_size, sequence_first=self._watched.sequence_first)

    def _same_size(self, shape: torch.Size) -> bool:
        return len(shape) > 1 and shape[0] == shape[1] == self._batch_size

    def _told_apart(self, shape: torch.Size) -> None:
        """Refuse [B, B, ...] where one may be positions and the model does not keep examples first."""
        if self._same_size(shape) and (self._watched.sequence_first or self._uses.turned):
            raise Unsupported(
                f"a tensor of shape {tuple(shape)}: as many positions as examples, in a model that turns them"
            )

    # --- parameters --------------------------------------------------------------------------------------------------

    def _completing(self, name: str) -> Callable[[Tensor], None]:
        def complete(gradient: Tensor) -> None:
            if self.reason:
                return
            with self.safely([name], gradient.device.type):
                forms = self._forms.pop(name, [])
                if name in self._completed:
                    self.uncovered[name] = "its gradient came in parts (several backward passes, reentrant checkpoints)"
                self._completed.add(name)
                if name in self.uncovered:
                    return
                if not forms:
                    raise Unsupported("its use was not seen: it lies outside the modules that ran, or is compiled")
                self._tell(name, forms, gradient.detach())

        return complete

    def _idle(self) -> bool:
        return bool(self.reason) or not torch.is_grad_enabled()


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


def _input(args: Any, kwargs: Any) -> Tensor:
    found = next(_tensors((*args, *kwargs.values())), None)
    if found is None:
        raise Unsupported("its layer was called without a tensor")
    return found


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
