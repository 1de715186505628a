"""The Jacobian of a network's outputs in reverse mode: J' from one backward pass, J from differentiating that."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learnmech.probes.curvature.operators.graph import broken_node
from learnmech.probes.curvature.operators.operator import NotTwiceDifferentiable
from learnmech.probes.curvature.operators.outputs import Cut

ADJOINT = 1e-2
"""Relative difference of v'J'y and y'Jv beyond which J v is wrong: rounding gives 1e-6 in float32, 3e-3 under
bfloat16 autocast."""


@dataclass(eq=False, slots=True)
class Part:
    """One batch: its outputs, and J' s as a function of a dummy s, whose derivative with respect to s is J.

    Attributes:
        cut: The outputs.
        dummies: s, zero, of the shapes of the outputs; empty if J comes by other means.
        pulled: J' s with a graph to s, a tensor per parameter.
    """

    cut: Cut
    dummies: list[Tensor]
    pulled: Sequence[Tensor | None]


def reversible(found: Cut, parameters: Sequence[Tensor]) -> Part:
    """Return the outputs with J' s, whose derivative with respect to s is J."""
    dummies = [torch.zeros_like(z).requires_grad_() for z in found.outputs]
    try:
        pulled: Sequence[Tensor | None] = torch.autograd.grad(
            found.edges, parameters, dummies, create_graph=True, allow_unused=True
        )
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise NotTwiceDifferentiable(f"differentiating the outputs failed: {error}") from error
    if broken := broken_node(pulled):
        raise NotTwiceDifferentiable(f"an operation has no second derivative (autograd node {broken})")
    return Part(found, dummies, pulled)


def pushed_forward(part: Part, directions: Sequence[Tensor]) -> list[Tensor]:
    """Return J v as the derivative of (J's)'v with respect to s."""
    live = [(p, d.to(p.dtype)) for p, d in zip(part.pulled, directions, strict=True) if p is not None]
    try:
        pushed: Sequence[Tensor | None] = torch.autograd.grad(
            [p for p, _ in live], part.dummies, [d for _, d in live], retain_graph=True, allow_unused=True
        )
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise NotTwiceDifferentiable(f"differentiating the outputs failed: {error}") from error
    return [torch.zeros_like(z) if u is None else u for u, z in zip(pushed, part.cut.outputs, strict=True)]


def check_forward(part: Part, parameters: Sequence[Tensor], generator: torch.Generator) -> None:
    """Check y'(J J'y) = |J'y|^2 for random y: all of the network takes part, and nothing can cancel.

    Raises:
        NotTwiceDifferentiable: It is not so.
    """  # noqa: DOC502 (raised below)
    random = [torch.randn(z.shape, generator=generator, device=generator.device).to(z) for z in part.cut.outputs]
    pulled: Sequence[Tensor | None] = torch.autograd.grad(
        part.cut.edges, parameters, random, retain_graph=True, allow_unused=True
    )
    directions = [torch.zeros_like(p) if r is None else r for r, p in zip(pulled, parameters, strict=True)]
    check_adjoint(pushed_forward(part, directions), random, pulled, directions)


def check_adjoint(
    outputs: Sequence[Tensor], curved: Sequence[Tensor], pulled: Sequence[Tensor | None], directions: Sequence[Tensor]
) -> None:
    """Check y'(J v) = (J'y)'v: J' comes from first derivatives, which training relies on; J v does not."""
    one = math.fsum(float((u.double() * y.double()).sum()) for u, y in zip(outputs, curved, strict=True))
    pairs = [(r.double(), d.double()) for r, d in zip(pulled, directions, strict=True) if r is not None]
    other = math.fsum(float((r * d).sum()) for r, d in pairs)
    size = math.sqrt(
        math.fsum(float((r * r).sum()) for r, _ in pairs) * math.fsum(float((d * d).sum()) for _, d in pairs)
    )
    # for a vector that G sends to nearly nothing both are rounding
    if abs(one - other) > ADJOINT * max(abs(one), abs(other)) and abs(one - other) > ADJOINT**2 * size:
        raise NotTwiceDifferentiable(
            f"an operation has a wrong second derivative: y'(J v) is {one:.4g} and (J'y)'v is {other:.4g}"
        )
