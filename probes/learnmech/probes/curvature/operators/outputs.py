"""A loss cut in two at the network's outputs: L(w) = l(z(w)), found on the graph of an opaque loss."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from learnmech.probes.curvature.objective import Unmeasurable
from learnmech.probes.curvature.operators.graph import broken_node, crossed
from learnmech.probes.isolation.outputs import Output

SAME = 1e-3
"""Relative difference of J' dl/dz and the gradient that still counts as none: the same operations in the same order
differ by nothing in most cases, and by the spacing of bfloat16 where a cast lies at the cut; a loss that uses an output
in two ways, or a penalty beside the network, by its share of the gradient."""


@dataclass(frozen=True, eq=False, slots=True)
class Cut:
    """Outputs z of a network with the graphs on either side.

    Attributes:
        edges: Where the outputs are in the graph.
        outputs: The outputs, detached.
        places: Their numbers among all outputs of all modules.
        slopes: dl/dz, with a graph to z.
    """

    edges: list[GradientEdge]
    outputs: list[Tensor]
    places: list[int]
    slopes: list[Tensor]


def cut(loss: Tensor, outputs: Sequence[Output], parameters: Sequence[Tensor], names: Sequence[str]) -> Cut:
    """Find the outputs through which, and only through which, a loss depends on the parameters.

    They are what one module returned, in all its calls, as far as the loss uses it: the module with the most parameters
    such that every path from the loss to a parameter crosses what it returned. The whole network, if it was called.

    Args:
        loss: The loss, with its graph.
        outputs: What the modules returned.
        parameters: The leaves.
        names: Their names.

    Raises:
        Unmeasurable: There are no such outputs, or the loss is not differentiable.
    """
    start = loss.grad_fn
    if start is None:
        raise Unmeasurable("the loss has no graph")
    calls: dict[int, list[Output]] = {}
    for output in outputs:
        if output.tensor.requires_grad:
            calls.setdefault(id(output.module), []).append(output)
    outside: Tensor | None = None
    for found in sorted(calls.values(), key=_rank, reverse=True):
        if not any(True for _ in found[0].module.parameters()):
            break  # activations and criteria
        edges = [get_gradient_edge(output.tensor) for output in found]
        met, leaf = crossed(start, edges, parameters)
        if leaf is None and met:
            return _cut(loss, [found[i] for i in met], [edges[i] for i in met])
        outside = leaf if outside is None else outside  # of the largest module
    if outside is None:
        raise Unmeasurable("no module was called between the parameters and the loss, so there are no outputs")
    name = next(name for name, p in zip(names, parameters, strict=True) if p is outside)
    raise Unmeasurable(
        f"the loss depends on {name} past the outputs of every module (a penalty on weights, or outputs changed in "
        "place?), so it is no function of the outputs alone"
    )


def _rank(found: Sequence[Output]) -> tuple[bool, int, int]:
    module: nn.Module = found[0].module
    single = sum(output.tensor.numel() for output in found) == 1  # most likely the loss itself, with a dimension
    return not single, sum(p.numel() for p in module.parameters()), found[-1].place


def _cut(loss: Tensor, found: Sequence[Output], edges: list[GradientEdge]) -> Cut:
    try:
        slopes = list(torch.autograd.grad(loss, edges, create_graph=True))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # torch has no narrower type for "derivative is not implemented"
        raise Unmeasurable(f"the loss cannot be differentiated twice at the outputs: {error}") from error
    if not any(slope.requires_grad for slope in slopes):
        raise Unmeasurable(
            "the loss is linear in the outputs of the network, so its Gauss-Newton matrix is zero (does the model "
            "return its loss?)"
        )
    if broken := broken_node(slopes):
        raise Unmeasurable(f"the loss has no second derivative in the outputs (autograd node {broken})")
    return Cut(edges, [output.tensor.detach() for output in found], [output.place for output in found], slopes)


def check_cut(cut: Cut, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Check that J' dl/dz is the gradient. Costs one backward pass; the graphs are kept.

    Raises:
        Unmeasurable: It is not: the loss uses outputs that depend on one another.
    """
    partial: Sequence[Tensor | None] = torch.autograd.grad(
        cut.edges, parameters, [slope.detach() for slope in cut.slopes], retain_graph=True, allow_unused=True
    )
    apart = scale = 0.0
    for one, other in zip(partial, gradients, strict=True):
        if one is not None and other is not None:
            apart += float((one - other).double().square().sum())
        elif (alone := one if other is None else other) is not None:
            apart += float(alone.double().square().sum())
        if other is not None:
            scale += float(other.double().square().sum())
    if apart > SAME**2 * scale:
        raise Unmeasurable(
            "the gradient through the outputs of the network is not the gradient (they are "
            f"{math.sqrt(apart / scale) if scale else math.inf:.1%} apart): the loss uses outputs that depend on one "
            "another"
        )
