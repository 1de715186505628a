"""A look at an autograd graph: does it end where it should not?"""

from collections.abc import Sequence

from torch import Tensor

BROKEN_NODES = ("Error", "NotImplemented")
"""Names of nodes that end a graph that cannot be differentiated: `once_differentiable`, a missing derivative."""


def broken_node(tensors: Sequence[Tensor | None]) -> str | None:
    """Return the name of an error node in the graph of some gradients, or None.

    A function marked `once_differentiable` leaves a node `Error` that no path to a parameter crosses, so that
    `autograd.grad(..., allow_unused=True)` passes it by and reports None where the derivative exists.
    """
    stack = [tensor.grad_fn for tensor in tensors if tensor is not None and tensor.grad_fn is not None]
    seen = set(stack)
    while stack:
        node = stack.pop()
        if node.name() in BROKEN_NODES:
            return node.name()
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)
    return None
