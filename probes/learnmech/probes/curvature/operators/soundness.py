"""Is the loss a function of the parameters that autograd sees whole? Checked once, before curvature is asked for."""

import math

from learnmech.probes.curvature.objective import Objective, Unmeasurable

REPEATS = 1e-5
"""Relative difference of two evaluations of a loss that still counts as none. Sums in another order differ by 1e-7 in
float32; other dropout masks, or a loss that counts its calls, by 1e-3 and more."""

NUDGE = 1e-2
"""How far parameters without gradient are moved, relative to their norm, to see whether the loss depends on them."""


def repeatable(objective: Objective) -> float:
    """Check that the loss is a function of the parameters: two evaluations at w agree. Costs two forward passes.

    Returns:
        The loss.

    Raises:
        Unmeasurable: They do not; the message says what to do about it.
    """
    first, second = float(objective.loss_along()), float(objective.loss_along())
    finite = math.isfinite(first) and math.isfinite(second)  # a loss that is NaN has its own message
    if finite and abs(first - second) > REPEATS * max(abs(first), abs(second)):
        raise Unmeasurable(
            f"the loss is not deterministic: two evaluations at the same weights and data gave {first:.7g} and "
            f"{second:.7g}. Random numbers of torch, numpy and random (dropout) are repeated already; if kernels "
            "differ from call to call, use torch.use_deterministic_algorithms(True); if the loss keeps state outside "
            "the model (a global, a file, a generator, a data loader), keep it in the model or pass a loss without it"
        )
    return first


def nothing_hidden(objective: Objective) -> None:
    """Check that parameters without gradient do not change the loss. Costs two forward passes if there are any.

    Args:
        objective: The loss, once a gradient was taken: `unused` is known.

    Raises:
        Unmeasurable: They do: they were detached, or an operation drops their gradient. Their part of the Hessian
            would silently be zero.
    """
    unused = set(objective.unused)
    if not unused:
        return
    space, generator = objective.space, objective.space.generator(0)
    noise = objective.split(space.draw(generator))
    named = list(zip(objective.names, objective.parameters, strict=True))
    direction = space.unit(
        objective.join([d if name in unused else None for (name, _), d in zip(named, noise, strict=True)])
    )
    length = float(space.norm(objective.join([p if name in unused else None for name, p in named])))
    here = float(objective.loss_along())
    there = float(objective.loss_along(direction, NUDGE * (length or 1.0)))
    if math.isfinite(here) and not abs(there - here) <= REPEATS * max(abs(here), abs(there)):
        some = ", ".join(objective.unused[:3]) + (" and others" if len(unused) > 3 else "")
        raise Unmeasurable(
            f"the loss changes with {some}, but has no gradient there (was it detached, or does an operation drop the "
            "gradient?): that part of the Hessian would silently be zero. If it is not trained, set requires_grad to "
            "False or leave it out of the optimizer"
        )
