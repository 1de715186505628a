"""What every backward pass adds to the gradient of each parameter, seen on the way there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from learnmech.probes.distributed.fsdp import is_shard, local, mesh_of
from learnmech.probes.estimators.squares import square_sum
from learnmech.probes.isolation import is_probing
from learnmech.probes.noise.hook_time import HookTime

WITNESSES = 8
"""Parameters of which some numbers are added up, to compare the sum of what was seen with the gradient itself."""

SAMPLE = 64
"""Numbers of each of them."""

TOO_MANY = 16
"""Backward passes for each expected one after which nothing is kept any more: there is no update to come."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Which numbers of a parameter are added up: every so many of the first ones, which the first process holds.

    Attributes:
        held: The first numbers.
        stride: Every so many of them.
    """

    held: int
    stride: int

    @property
    def count(self) -> int:
        """How many numbers."""
        return min(SAMPLE, -(-self.held // self.stride))


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

    One hook is on the tensor, the other where the gradient has been added: what the first sees counts only then, so
    that `torch.autograd.grad` (a gradient penalty) adds nothing. Both belong to the tensor: a hook on the node that
    adds to `.grad` would keep this node from one step to the next, and with it the shape the weights had then (pruning
    and offloading change it).

    Passes are told apart by `next_piece`, called after each. Without these calls each parameter must be reached as
    often as pieces are expected: the n-th pass through it is piece n.

    Under `fully_shard` the leaves are whole parameters that exist from the forward pass of a module to its backward
    pass; they are met right before that module's forward pass.

    Args:
        model: The model.
        parameters: Its parameters by name; those that need no gradient are left out.
        expected: Pieces that are expected.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, Tensor], expected: int = 1) -> None:
        self.trouble = ""
        """Why what was seen is not to be used."""
        self._parameters = {name: p for name, p in parameters.items() if p.requires_grad}
        self._column = {name: index for index, name in enumerate(self._parameters)}
        self._expected = expected
        self._places = _places(self._parameters)
        self._homes = _homes(model, self._parameters)
        self._seen: list[dict[str, list[Tensor]]] = [{}]
        self._sums: dict[str, Tensor] = {}
        self._pending: dict[str, tuple[Tensor, Tensor | None]] = {}
        self._hooks: list[Any] = []
        self._time = HookTime()
        self._met: set[int] = set()
        self._told = False

    def arm(self) -> None:
        """Begin to look."""
        self.disarm()
        for name, parameter in self._parameters.items():
            if not is_shard(parameter):
                self._hook(name, parameter)
        for module, names in self._homes:
            self._hooks.append(module.register_forward_pre_hook(self._time.of(self._meeting(names))))

    def disarm(self) -> None:
        """Stop looking."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._met, self._pending = [], set(), {}

    @property
    def seconds(self) -> float:
        """Host time that the hooks have taken."""
        return self._time.seconds

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
            other = next((name for name, squares in pieces[0].items() if len(squares) != self._expected), None)
            if other is not None:
                self.trouble = (
                    f"the gradient of {other} came in {len(pieces[0][other])} parts where {self._expected} "
                    "micro-batches were expected; recorder.after_backward(batch) after each of them tells them apart"
                )
                return None
            pieces = [{name: [squares[k]] for name, squares in pieces[0].items()} for k in range(self._expected)]
        if not pieces:
            return None
        return Seen(list(self._column), self._matrix(pieces), self._sample())

    def sample_of(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """Return the numbers of a gradient that `Seen.sample` adds up; zero where there is none. [samples].

        Args:
            gradients: The gradient, or the first process's shard of it, by parameter.
        """
        strided = {name: local(g) for name, g in gradients.items() if g.layout is torch.strided}
        return self._row({n: _spread(strided[n], place) for n, place in self._places.items() if n in strided})

    def _hook(self, name: str, leaf: Tensor) -> None:
        def look(gradient: Tensor) -> None:
            if self.trouble or is_probing():  # sharded parameters are differentiated themselves, by other probes too
                return
            try:
                with torch.no_grad():
                    self._take(name, gradient)
            except Exception as error:  # noqa: BLE001 (nothing may be raised into the backward pass)
                self.trouble = f"{type(error).__name__} at the gradient of {name}: {error}"[:300]

        def added(_: Tensor) -> None:
            seen = self._pending.pop(name, None)
            if seen is not None and not self.trouble:
                self._add(name, *seen)

        hookable: Any = leaf  # torch leaves these methods untyped
        timed = self._time.of
        self._hooks += [hookable.register_hook(timed(look)), hookable.register_post_accumulate_grad_hook(timed(added))]

    def _meeting(self, names: Mapping[str, str]) -> Any:
        def meet(module: nn.Module, _: Any) -> None:
            if is_probing():
                return
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
        place = self._places.get(name)
        self._pending[name] = square_sum(gradient), None if place is None else _spread(gradient, place)

    def _add(self, name: str, square: Tensor, sample: Tensor | None) -> None:
        squares = self._seen[-1].setdefault(name, [])
        squares.append(square)
        if len(squares) > TOO_MANY * self._expected:
            self.trouble = f"the gradient of {name} came in more than {TOO_MANY * self._expected} parts"
            self._seen, self._sums = [{}], {}
        elif sample is not None:
            self._sums[name] = self._sums[name] + sample if name in self._sums else sample

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
        for name, place in self._places.items():
            row = torch.zeros(place.count, dtype=torch.float64, device=device)
            if name in found:
                own = found[name]  # fewer in the last shards
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


def _places(parameters: Mapping[str, Tensor]) -> dict[str, _Place]:
    """Choose the witnesses: parameters from all over the model, numbers from all over each."""
    held = {name: _held_first(p) for name, p in parameters.items()}
    filled = [name for name, count in held.items() if count]
    stride = max(len(filled) // WITNESSES, 1)
    return {name: _Place(held[name], max(held[name] // SAMPLE, 1)) for name in filled[::stride][:WITNESSES]}


def _held_first(parameter: Tensor) -> int:
    """Return how many of a parameter's first numbers the first process holds."""
    if not is_shard(parameter) or not parameter.numel():
        return parameter.numel()
    rows = -(-len(parameter) // mesh_of(parameter).size())  # `fully_shard` cuts rows as torch.chunk does
    return int(rows * parameter.numel() // len(parameter))


def _spread(tensor: Tensor, place: _Place) -> Tensor:
    """Return a copy of some numbers of a tensor, in float64; of complex numbers the real parts."""
    flat = tensor.detach().reshape(-1)[: place.held : place.stride][: place.count]
    return flat.real.to(torch.float64, copy=True)
