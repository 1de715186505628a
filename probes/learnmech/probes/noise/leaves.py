"""What every backward pass adds to the gradient of each parameter, seen on the way there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from learnmech.probes.distributed.fsdp import is_shard, local, mesh_of
from learnmech.probes.estimators.squares import square_sum

WITNESSES = 8
"""Parameters of which some numbers are added up, to compare the sum of what was seen with the gradient itself."""

SAMPLE = 64
"""Numbers of each of them."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Contributions h_k of the pieces of one update to its gradient g = sum_k h_k, in this process.

    Attributes:
        names: Parameters, in the order of the columns.
        squares: |h_k|^2 of piece k in each parameter, in float64. [K, parameters]
        sample: Some numbers of sum_k h_k, those of `LeafHooks.sample_of`. [samples]
    """

    names: Sequence[str]
    squares: Tensor
    sample: Tensor


class LeafHooks:
    """Takes the squared norm of what each backward pass contributes to each parameter.

    Hooks see the whole contribution of one backward pass to a leaf, after the hooks that the user put there, before it
    is added to `.grad` and before data parallelism averages it over processes. Nothing is kept but norms, nothing is
    waited for, and no failure leaves a hook: it is told by `trouble`.

    Passes are told apart by `next_piece`, called after each; without these calls the n-th pass through a parameter is
    taken for piece n, which is the same wherever each piece reaches every parameter.

    Under `fully_shard` the leaves are whole parameters that exist from the forward pass of a module to its backward
    pass; they are met right before that module's forward pass.

    Args:
        model: The model.
        parameters: Its parameters by name; those that need no gradient are left out.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, Tensor]) -> None:
        self.trouble = ""
        """Why what was seen is not to be used."""
        self._parameters = {name: p for name, p in parameters.items() if p.requires_grad}
        self._column = {name: index for index, name in enumerate(self._parameters)}
        self._places = _places(self._parameters)
        self._homes = _homes(model, self._parameters)
        self._seen: list[dict[str, list[Tensor]]] = [{}]
        self._sums: dict[str, Tensor] = {}
        self._hooks: list[Any] = []
        self._nodes: list[Any] = []
        self._met: set[int] = set()
        self._told = False

    def arm(self) -> None:
        """Begin to look."""
        self.disarm()
        for name, parameter in self._parameters.items():
            if not is_shard(parameter):
                self._hook(name, parameter)
        for module, names in self._homes:
            self._hooks.append(module.register_forward_pre_hook(self._meeting(names)))

    def disarm(self) -> None:
        """Stop looking."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._nodes, self._met = [], [], set()

    def next_piece(self) -> None:
        """Tell that a backward pass has ended, and that the next one is of another piece."""
        self._told = True
        self._seen.append({})

    def seen(self) -> Seen | None:
        """Return what was seen; None if it cannot be used, for the reason in `trouble`, or there was nothing."""
        if self.trouble:
            return None
        pieces = [found for found in self._seen if found]
        if self._told:
            twice = next((name for found in pieces for name, squares in found.items() if len(squares) > 1), None)
            if twice is not None:
                self.trouble = (
                    f"the gradient of {twice} came in several parts within one micro-batch (two backward passes, or "
                    "reentrant checkpointing): the norm of their sum is not known"
                )
                return None
        elif pieces:  # one dictionary of all passes
            passes = max(map(len, pieces[0].values()))
            pieces = [{n: [s[k]] for n, s in pieces[0].items() if len(s) > k} for k in range(passes)]
        if not pieces:
            return None
        return Seen(list(self._column), self._matrix(pieces), self._sample())

    def sample_of(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """Return the numbers of a gradient that `Seen.sample` adds up; zero where there is none. [samples].

        Args:
            gradients: The gradient, or the first process's shard of it, by parameter.
        """
        return self._row({name: local(g) for name, g in gradients.items() if g.layout is torch.strided})

    def _hook(self, name: str, leaf: Tensor) -> None:
        def look(gradients: tuple[Tensor | None, ...]) -> None:
            gradient = gradients[0]
            if self.trouble or gradient is None:
                return
            try:
                with torch.no_grad():
                    self._take(name, gradient)
            except Exception as error:  # noqa: BLE001 (nothing may be raised into the backward pass)
                self.trouble = f"{type(error).__name__} at the gradient of {name}: {error}"[:300]

        # on the node that adds to .grad, which `torch.autograd.grad` (a gradient penalty) does not run
        node: Any = get_gradient_edge(leaf).node
        self._nodes.append(node)  # nothing else keeps it between passes
        self._hooks.append(node.register_prehook(look))

    def _meeting(self, names: Mapping[str, str]) -> Any:
        def meet(module: nn.Module, _: Any) -> None:
            for attribute, name in names.items():
                leaf = module._parameters.get(attribute)  # noqa: SLF001 (an attribute may be computed)
                if leaf is None or id(leaf) in self._met or is_shard(leaf) or not leaf.requires_grad:
                    continue
                self._met.add(id(leaf))  # one object in all passes
                self._hook(name, leaf)

        return meet

    def _take(self, name: str, gradient: Tensor) -> None:
        if gradient.layout is not torch.strided:
            self.trouble = f"the gradient of {name} is sparse"
            return
        if is_shard(gradient):
            self.trouble = f"the gradient of {name} is sharded when it comes (tensor parallelism)"
            return
        self._seen[-1].setdefault(name, []).append(square_sum(gradient))
        count = self._places.get(name)
        if count:
            part = _first(gradient, count)
            self._sums[name] = self._sums[name] + part if name in self._sums else part

    def _matrix(self, pieces: Sequence[Mapping[str, Sequence[Tensor]]]) -> Tensor:
        """Put the squares together by piece and parameter, [K, parameters], on one device."""
        found = [(k, self._column[name], one[0]) for k, piece in enumerate(pieces) for name, one in piece.items()]
        device = found[0][2].device
        squares = torch.stack([square.to(device, non_blocking=True) for *_, square in found])
        width = len(self._column)
        places = sent(torch.tensor([k * width + column for k, column, _ in found]), device)
        flat = torch.zeros(len(pieces) * width, dtype=torch.float64, device=device)
        return flat.index_copy_(0, places, squares).view(len(pieces), width)

    def _sample(self) -> Tensor:
        return self._row(self._sums)

    def _row(self, found: Mapping[str, Tensor]) -> Tensor:
        device = local(next(iter(self._parameters.values()))).device
        rows = []
        for name, count in self._places.items():
            row = torch.zeros(count, dtype=torch.float64, device=device)
            if name in found:
                own = _first(found[name], count)  # fewer in the last shards
                row[: len(own)] = own.to(device, non_blocking=True)
            rows.append(row)
        return torch.cat(rows)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on a device, without waiting for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _homes(model: nn.Module, parameters: Mapping[str, Tensor]) -> list[tuple[nn.Module, dict[str, str]]]:
    """List the modules that hold sharded parameters, and for each of their attributes the parameter's name."""
    sharded = {id(p): name for name, p in parameters.items() if is_shard(p)}
    found = []
    for module in model.modules():
        held = module._parameters.items()  # noqa: SLF001 (tied ones are skipped by named_parameters)
        names = {attribute: sharded[id(p)] for attribute, p in held if id(p) in sharded}
        if names:
            found.append((module, names))
    return found


def _places(parameters: Mapping[str, Tensor]) -> dict[str, int]:
    """Choose the witnesses: parameters from all over the model, the first numbers of each."""
    held = {name: _held_first(p) for name, p in parameters.items()}
    filled = [name for name, count in held.items() if count]
    stride = max(len(filled) // WITNESSES, 1)
    return {name: min(held[name], SAMPLE) for name in filled[::stride][:WITNESSES]}


def _held_first(parameter: Tensor) -> int:
    """Return how many of a parameter's first numbers the first process holds."""
    if not is_shard(parameter) or not parameter.numel():
        return parameter.numel()
    rows = -(-len(parameter) // mesh_of(parameter).size())  # `fully_shard` cuts rows as torch.chunk does
    return int(rows * parameter.numel() // len(parameter))


def _first(tensor: Tensor, count: int) -> Tensor:
    """Return a copy of the first numbers of a tensor, in float64; of complex numbers the real parts."""
    return tensor.detach().reshape(-1)[:count].real.to(torch.float64, copy=True)
