"""Finds in the autograd graph where parameters are used outside the layers that are known by type.

Attention's packed projections, a head tied to an embedding by `linear(h, embed.weight)`, positions that are added,
scales that are multiplied: their modules show no input and output of that operation, but the graph has a node for it,
and the node's gradient comes by in backward.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

_SAME = ("ToCopyBackward", "AliasBackward", "CloneBackward")
_ORDERED = ("ViewBackward", "UnsafeViewBackward", "ReshapeAliasBackward", "UnsqueezeBackward", "SqueezeBackward")
_TURNED = ("TBackward", "TransposeBackward", "PermuteBackward")
_PARTS = ("SliceBackward", "SelectBackward")
_SPLITS = ("SplitBackward", "SplitWithSizesBackward")
_ROWS = ("Mm", "Addmm")
# Each number of a tensor appears in a view of it at most once, so that norms of gradients are the same for both.


@dataclass(frozen=True, slots=True)
class Path:
    """How a tensor came from a parameter, through views and casts only.

    Attributes:
        target: What it came from, as the caller named it.
        shape: The tensor's shape.
        transposed: It is the transpose of a matrix.
        start: Where it begins along the first dimension, for a piece of a split.
        ordered: Its numbers are those of the target, in the same order (of the piece, or of the transpose).
    """

    target: str
    shape: torch.Size
    transposed: bool = False
    start: int = 0
    ordered: bool = True


@dataclass(frozen=True, slots=True)
class Consumer:
    """An operation that a parameter enters.

    Attributes:
        node: Its node.
        operation: Its name, such as "Addmm".
        input: Which of its inputs the parameter is.
        path: How the parameter got there.
        shape: Shape of the result, as it is viewed right after: `linear` works on rows and gives back their shape.
    """

    node: Node
    operation: str
    input: int
    path: Path
    shape: torch.Size


class Uses:
    """Walks the graph of a forward pass, each node once, and reports what the targets enter.

    Args:
        leaves: The parameters by name.
    """

    def __init__(self, leaves: Mapping[str, Tensor]) -> None:
        self._names = {id(leaf): name for name, leaf in leaves.items()}
        self._key = object()
        self.turned = False
        """The first dimension of a tensor was exchanged with another one, outside of known layers."""

    def target(self, name: str, node: Node, held: object) -> None:
        """Report also what the result of a node enters, and hold something for as long as the graph lives."""
        self._notes(node).update(target=name, held=held)

    def own(self, outputs: Tensor, inputs: Iterable[Tensor]) -> None:
        """Leave out the nodes between the inputs and the output of a layer that is known by type."""
        for node in _between(outputs, inputs):
            self._notes(node)["own"] = True

    def inside(self, outputs: Tensor, inputs: Iterable[Tensor]) -> None:
        """Let a layer turn tensors as it likes: what it does with examples is known."""
        for node in _between(outputs, inputs):
            self._notes(node)["inside"] = True

    def walk(self, outputs: Iterable[Tensor]) -> Iterator[Consumer]:
        """Report the uses in the graph of some tensors that no earlier walk has met."""
        stack = [(x.grad_fn, x.shape) for x in outputs if x.grad_fn is not None and self._first_time(x.grad_fn)]
        while stack:
            node, shape = stack.pop()
            operation, notes = _operation(node), self._notes(node)
            view = operation.startswith(("View", "UnsafeView"))
            self.turned = self.turned or (
                len(shape) > 2 and "inside" not in notes and _moves_first(node, operation, len(shape))
            )
            for number, (following, output) in enumerate(node.next_functions):
                if following is None:
                    continue
                if view:
                    self._notes(following).setdefault("viewed", shape)
                if self._first_time(following):
                    stack.append((following, _shape(following, output)))
                if "own" in notes or _is_view(node):
                    continue
                path = self._trace(following, output)
                if path is not None:
                    rows = notes.get("viewed", shape) if operation in _ROWS else shape
                    yield Consumer(node, operation, number, path, rows if rows[-1:] == shape[-1:] else shape)

    def clear(self) -> None:
        """Forget all graphs."""
        self._key = object()
        self.turned = False

    def _notes(self, node: Node) -> dict[str, Any]:
        """Return what is noted at a node, in a place of its own that dies with the graph: holding a node would hold it.

        A node's `metadata` belongs to whoever looks at the graph; autograd's anomaly mode has its own keys in it.
        """
        metadata: Any = node.metadata  # torch's stubs have it as a method
        notes: dict[str, Any] = metadata.setdefault(self._key, {})
        return notes

    def _first_time(self, node: Node) -> bool:
        notes = self._notes(node)
        first = "seen" not in notes
        notes["seen"] = True
        return first

    def _trace(self, node: Node | None, output: int) -> Path | None:
        """Follow views and casts down to a target."""
        if node is None:
            return None
        name = self._notes(node).get("target") or self._names.get(id(getattr(node, "variable", None)))
        shape = _shape(node, output)
        if name is not None:
            return Path(name, shape)
        if not _is_view(node):
            return None
        path = self._trace(*node.next_functions[0])
        return None if path is None else _through(node, output, path, shape)


def _through(node: Node, output: int, path: Path, shape: torch.Size) -> Path:
    operation, before = _operation(node) + "Backward", path.shape
    if operation.startswith(_TURNED):
        matrix = len(before) == 2 and operation.startswith(("TBackward", "TransposeBackward"))
        return replace(path, shape=shape, transposed=path.transposed != matrix, ordered=path.ordered and matrix)
    if operation.startswith(_SPLITS) and _along_rows(node, before) and not path.transposed:
        sizes = getattr(node, "_saved_split_sizes", None)
        start = sum(sizes[:output]) if sizes is not None else output * getattr(node, "_saved_split_size", 0)
        return replace(path, shape=shape, start=path.start + start)
    if operation.startswith(_ORDERED) and path.start == 0 and not path.transposed:
        return replace(path, shape=shape)
    if operation.startswith(_SAME):
        return path
    return replace(path, shape=shape, ordered=False)


def _between(outputs: Tensor, inputs: Iterable[Tensor]) -> set[Node]:
    ends = {x.grad_fn for x in inputs}
    found: set[Node] = set()
    stack = [outputs.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and node not in ends and node not in found:
            found.add(node)
            stack.extend(following for following, _ in node.next_functions)
    return found


def _moves_first(node: Node, operation: str, rank: int) -> bool:
    first = {0, -rank, 2**64 - rank}  # a negative number is kept as an unsigned one
    if operation == "Transpose":
        pair = {getattr(node, "_saved_dim0", 0), getattr(node, "_saved_dim1", 0)}
        return bool(pair & first) and not pair <= first
    return operation == "Permute" and not first & set(tuple(getattr(node, "_saved_dims", ()))[:1])


def _along_rows(node: Node, shape: torch.Size) -> bool:
    dim = getattr(node, "_saved_dim", 1)
    return dim in {0, 2**64 - len(shape), -len(shape)}


def _operation(node: Node) -> str:
    return _parsed(node.name())[0]


def _is_view(node: Node) -> bool:
    return _parsed(node.name())[1]


@functools.lru_cache(maxsize=512)
def _parsed(name: str) -> tuple[str, bool]:
    """Return the operation that a node is named for, and whether it is a view or a cast."""
    operation = name.rpartition("::")[2].partition("Backward")[0]
    return operation, (operation + "Backward").startswith((*_SAME, *_ORDERED, *_TURNED, *_PARTS, *_SPLITS))


def _shape(node: Node, output: int) -> torch.Size:
    entries = getattr(node, "_input_metadata", ())
    return torch.Size(entries[output].shape) if output < len(entries) else torch.Size()
