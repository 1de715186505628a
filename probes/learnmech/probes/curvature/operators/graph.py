"""Looks at an autograd graph: does it end where it should not, and what do all its paths cross?"""

from collections.abc import Collection, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

BROKEN = "Error"
"""Name of the nodes at which a graph ends that cannot be differentiated. A missing derivative of a kernel has another
(`NotImplemented`), but that one lies on the path to the parameters and raises."""


KINKS = (
    "Relu",
    "LeakyRelu",
    "Prelu",
    "RreluWithNoise",
    "Threshold",
    "Hardtanh",
    "Hardswish",
    "Hardsigmoid",
    "Hardshrink",
    "Softshrink",
    "Clamp",
    "Abs",
    "Max",
    "Min",
    "Amax",
    "Amin",
    "MaxPool",
    "MkldnnMaxPool",
    "AdaptiveMaxPool",
    "FractionalMaxPool",
    "SmoothL1Loss",
    "HuberLoss",
    "Sort",
    "Topk",
    "Kthvalue",
    "Median",
)
"""Beginnings of the names of nodes whose function has kinks: there the gradient jumps (or, for the Huber losses, its
derivative does), which second derivatives leave out and differences see."""


def kinked_node(tensor: Tensor) -> str:
    """Return the name of a node with a kink in the graph of a loss, '' if there is none."""
    return next((name for name in map(_name, _nodes([tensor])) if _stem(name).startswith(KINKS)), "")


def resolution(tensor: Tensor) -> float:
    """Return the relative spacing of the coarsest floating type in the graph of a loss."""
    types = {entry.dtype for node in _nodes([tensor]) for entry in getattr(node, "_input_metadata", ())}
    return max((torch.finfo(dtype).eps for dtype in types if dtype.is_floating_point), default=0.0)


def _name(node: Node) -> str:
    return node.name().rpartition("::")[2]  # the name may come with its namespace


def _stem(name: str) -> str:
    return name.partition("Backward")[0]


def broken_node(tensors: Iterable[Tensor | None]) -> str | None:
    """Return the name of an error node in the graph of some gradients, or None.

    A function marked `once_differentiable` leaves a node `Error` that no path to a parameter crosses, so that
    `autograd.grad(..., allow_unused=True)` passes it by and reports None where the derivative exists.
    """
    return next((BROKEN for node in _nodes(tensors) if _name(node) == BROKEN), None)


def _nodes(tensors: Iterable[Tensor | None]) -> Iterator[Node]:
    """Walk over all nodes that some tensors were computed by."""
    stack = [tensor.grad_fn for tensor in tensors if tensor is not None and tensor.grad_fn is not None]
    seen = set(stack)
    while stack:
        node = stack.pop()
        yield node
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)


def crossed(start: Node, edges: Sequence[GradientEdge], leaves: Collection[Tensor]) -> tuple[list[int], Tensor | None]:
    """Walk from a loss towards some leaves, no further than the first edge met on each path.

    Args:
        start: Where the graph of the loss begins.
        edges: Edges that end a path.
        leaves: The leaves.

    Returns:
        The indices of the edges that were met, in order, and a leaf that was reached without meeting one, or None.
    """
    numbers = {(edge.node, edge.output_nr): index for index, edge in enumerate(edges)}
    wanted = {id(leaf): leaf for leaf in leaves}
    met: set[int] = set()
    stack, seen = [start], {start}
    while stack:
        node = stack.pop()
        leaf = wanted.get(id(getattr(node, "variable", None)))  # only a leaf's own node has this attribute
        if leaf is not None:
            return sorted(met), leaf
        for following, number in node.next_functions:
            if following is None:
                continue
            index = numbers.get((following, number))
            if index is not None:
                met.add(index)
            elif following not in seen:
                seen.add(following)
                stack.append(following)
    return sorted(met), None
