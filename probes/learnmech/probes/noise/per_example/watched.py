"""Which modules have to be watched to see every use of some parameters."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from learnmech.probes.noise.per_example.layers import RULED, Rule, norm_parameters, rule_of
from learnmech.probes.noise.per_example.operations import Derive
from learnmech.probes.noise.per_example.safety import is_compiled


@dataclass(slots=True, eq=False, weakref_slot=True)
class Call:
    """One call of a layer in the forward pass.

    Attributes:
        x: Its input; None where autograd does not keep it either, until it is computed again.
        d: The gradient of its output, once it is there.
        axis: Which dimension of both counts examples.
        why: Why it does not tell examples apart, which matters once a gradient comes through it.
        over: It has been dealt with, or turned out to be none of single examples.
    """

    x: Tensor | None
    d: Tensor | None = None
    axis: int = 0
    why: str = ""
    over: bool = False

    def drop(self) -> None:
        """Let go of what it holds."""
        self.x, self.d, self.over = None, None, True


@dataclass(slots=True, eq=False, weakref_slot=True)
class Use:
    """One use of a parameter in the graph.

    Attributes:
        derive: How its gradient follows from that of the result. It holds an input: let go of after use.
    """

    derive: Derive | None

    def drop(self) -> None:
        """Let go of what it holds."""
        self.derive = None


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class LookUp:
    """Rows of an embedding, looked up once for all examples.

    Attributes:
        name: The embedding's weight.
        module: The embedding.
        index: Which rows.
        shape: Shape of the rows.
        call: The same look-up, taken for one of one row for each example: only the graph can tell which it is.
    """

    name: str
    module: nn.Embedding
    index: Tensor
    shape: torch.Size
    call: Call | None


@dataclass(frozen=True, slots=True)
class Watched:
    """Modules to put hooks on.

    Attributes:
        layers: Layers with a rule, and the names of their parameters by attribute.
        searched: Modules at whose end the graph is searched.
        only_norms: Only parameters of norms are measured, which nothing else uses.
        refused: Parameters that cannot be seen, and why.
        positions_first: Parameters of attention layers, which work on [positions, examples, features] inside.
        sequence_first: Some layer takes [positions, examples, ...].
    """

    layers: list[tuple[nn.Module, Rule, dict[str, str]]] = field(default_factory=list)
    searched: list[nn.Module] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    positions_first: set[str] = field(default_factory=set)
    sequence_first: bool = False
    only_norms: bool = False


def watched(model: nn.Module, parameters: Mapping[str, Tensor]) -> Watched:
    """Go through a model's modules.

    Args:
        model: The model.
        parameters: Some of its parameters, by any names.
    """
    names = {id(p): name for name, p in parameters.items() if not p.is_complex()}
    found: dict[str, str] = {}
    result = Watched(
        sequence_first=any(getattr(module, "batch_first", True) is False for module in model.modules()),
        only_norms=norm_parameters(model, parameters).keys() == parameters.keys(),
    )
    compiled = {inner for module in model.modules() if is_compiled(module) for inner in module.modules()}
    for module in model.modules():
        held = module._parameters.items()  # noqa: SLF001 (tied ones are skipped by named_parameters)
        own = {attribute: names[id(p)] for attribute, p in held if id(p) in names}
        found.update(dict.fromkeys(own.values(), ""))
        if module in compiled:
            result.refused.update(dict.fromkeys(own.values(), "it is inside a compiled module"))
            continue
        if isinstance(module, nn.MultiheadAttention):
            inside = (names.get(id(p)) for p in module.parameters())
            result.positions_first.update(name for name in inside if name is not None)
        if isinstance(module, nn.RNNBase):
            result.refused.update(dict.fromkeys(own.values(), "it is inside a recurrent layer"))
            continue
        rule = rule_of(module) if own else None
        known = {attribute: name for attribute, name in own.items() if rule is not None and attribute in RULED}
        if rule is not None and known:
            result.layers.append((module, rule, known))
        if len(known) < len(own) or next(module.children(), None) is not None:
            result.searched.append(module)
    for name, parameter in parameters.items():
        if name not in found:
            result.refused[name] = "it is complex" if parameter.is_complex() else "no module of the model holds it"
    return result


Place = tuple[int, bool]
"""The memory that a tensor is a view of, and whether its first dimension is the outer one there."""


def place(x: Tensor) -> Place:
    """Return where a tensor has its numbers."""
    return x.untyped_storage().data_ptr(), x.dim() < 2 or x.stride(0) >= x.stride(1)


def tensors(value: Any) -> Iterator[Tensor]:
    """Find the tensors in arguments or outputs."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors(part)


def saving() -> bool:
    """Tell whether tensors that autograd saves go through hooks now: checkpointing, offloading."""
    autograd: Any = getattr(torch._C, "_autograd", None)  # noqa: SLF001 (no public name)
    top = getattr(autograd, "_top_saved_tensors_default_hooks", None)
    return top is not None and top(True) is not None


def in_backward() -> bool:
    """Tell whether a backward pass is under way."""
    return torch._C._current_graph_task_id() != -1  # noqa: SLF001 (no public name)


def recomputing() -> bool:
    """Tell whether a checkpointed part is being computed again, for what autograd will take from it only."""
    return in_backward() and saving()
