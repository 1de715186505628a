"""Which diagonal belongs to which optimizer: known ones, registered ones, and those that an optimizer offers itself."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from learnmech.probes.curvature.preconditioners.diagonal import NoPreconditioner, checked, wide
from learnmech.probes.curvature.preconditioners.without import why_without
from learnmech.probes.curvature.preconditioners.wrappers import unwrapped

Offer = Sequence[Tensor] | Mapping[Tensor, Tensor] | NoPreconditioner
"""A diagonal P: one tensor per parameter in the order asked for, or those of the parameters that move, by parameter."""

Preconditioner = Callable[[Any, Sequence[Tensor]], Offer]
"""From an optimizer and its parameters, the diagonal. It must only read."""

P = TypeVar("P", bound=Preconditioner)

OFFER = "learnmech_preconditioner"
"""The method by which an optimizer offers its diagonal itself."""

_KNOWN: dict[type, Preconditioner] = {}

_HARMLESS = frozenset({"add_param_group", "load_state_dict", "state_dict", "zero_grad"})
"""What a subclass may override, besides `__init__` and its like, without another update."""


def register_preconditioner(*kinds: type[torch.optim.Optimizer]) -> Callable[[P], P]:
    """Register the diagonal of a kind of optimizer; a decorator. The last registration of a class counts.

    The diagonal P is what divides: the step is -lr P^(-1) m, where m is the gradient, or whatever is linear in present
    and past gradients (momentum). The function returns one tensor per parameter, of the parameter's shape (a shard's,
    where parameters are sharded), positive, inf for one that does not move; or a mapping from parameters to such
    tensors without those that do not move; or `NoPreconditioner`. It must only read, `optimizer.state.get(p)` instead
    of `optimizer.state[p]`. What it raises is recorded as a reason, and training goes on.

    Subclasses inherit it if they override none of the methods that make the step.

    Args:
        *kinds: Classes of optimizers.

    Returns:
        A decorator that returns its function unchanged.
    """

    def register(diagonal: P) -> P:
        for kind in kinds:
            _KNOWN[kind] = diagonal
        return diagonal

    return register


def preconditioner_of(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]
) -> list[Tensor] | NoPreconditioner:
    """Return the diagonal P of an optimizer, or say why there is none.

    In this order: what is registered for its very class; what it offers itself, by a method
    `learnmech_preconditioner()` that returns a mapping from parameters to tensors, or a list in the order of
    `param_groups`; what is registered for the class it inherits its step from. Registered from the start are Adam,
    AdamW, NAdam, RAdam, Adamax, RMSprop, Adagrad, Adadelta and Adafactor of `torch.optim`. The wrappers of Lightning
    and Accelerate are looked into.

    Args:
        optimizer: It is only read.
        parameters: The optimizer's own parameter objects, in the order wanted.

    Returns:
        The diagonal, one tensor per parameter, of the shape that this process holds of it and at least float32; or why
        there is none. Where parameters are sharded, a shard can lack one (NaN, zero) that others have: whoever goes on
        to communicate agrees on it first.

    Raises:
        OutOfMemoryError: There is no memory for a copy of the diagonal.
    """
    name = type(optimizer).__name__
    try:
        inside = unwrapped(optimizer)
        name = type(inside).__name__
        with torch.no_grad():
            return _preconditioner_of(inside, list(parameters), name)
    except torch.OutOfMemoryError:  # who measures makes do with less the next time
        raise
    except Exception as error:  # noqa: BLE001 (other people's optimizers and hooks may raise anything)
        what = f"{type(error).__name__}: {error}".removesuffix(": ")
        return NoPreconditioner(f"the preconditioner of {name} could not be read: {what}", yet=True)


def _preconditioner_of(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], name: str
) -> list[Tensor] | NoPreconditioner:
    kind = type(optimizer)
    own = getattr(optimizer, OFFER, None)
    if kind in _KNOWN:
        return _accepted(_KNOWN[kind](optimizer, parameters), parameters, name)
    if callable(own):
        offer = own()
        if not isinstance(offer, Mapping | NoPreconditioner):
            offer = _by_parameter(optimizer, offer, name)
        return _accepted(offer, parameters, name)
    base = next((base for base in kind.__mro__ if base in _KNOWN), None)
    if base is not None:
        changed = _changed(kind, base)
        if not changed:
            return _accepted(_KNOWN[base](optimizer, parameters), parameters, name)
        return NoPreconditioner(
            f"{name} has its own {changed}(), so it may divide by something else than {base.__name__}; if it does not, "
            f"register_preconditioner({name}) says what it divides by",
            yet=False,
        )
    return NoPreconditioner(
        why_without(kind)
        or f"{name} has no known preconditioner; if it divides by a diagonal, register_preconditioner({name}) says so",
        yet=False,
    )


def _by_parameter(
    optimizer: torch.optim.Optimizer, offer: Any, name: str
) -> Mapping[Tensor, Tensor] | NoPreconditioner:
    tensors = list(offer)
    owned = [p for group in optimizer.param_groups for p in group["params"]]
    if len(tensors) != len(owned):
        return NoPreconditioner(f"{name} offers {len(tensors)} tensors for its {len(owned)} parameters", yet=False)
    return dict(zip(owned, tensors, strict=True))


def _accepted(offer: Offer, parameters: Sequence[Tensor], name: str) -> list[Tensor] | NoPreconditioner:
    if isinstance(offer, NoPreconditioner):
        return offer
    if not isinstance(offer, Mapping):
        return checked(list(offer), parameters, name)
    if not offer:
        return NoPreconditioner(f"not yet: {name} offers nothing to divide by", yet=True)
    if not any(p in offer for p in parameters):
        return NoPreconditioner(f"{name} offers a diagonal for none of the {len(parameters)} parameters", yet=False)
    # Anything but None is left to the check: a wrong entry is not the same as none.
    found = [offer[p] if p in offer else torch.full_like(wide(p), torch.inf) for p in parameters]
    return checked(found, parameters, name)


def _changed(kind: type, base: type) -> str:
    """Return the first method of `base` that `kind` overrides and that may change its step, '' if there is none."""
    for derived in kind.__mro__[: kind.__mro__.index(base)]:
        for attribute, value in vars(derived).items():
            inherited = getattr(base, attribute, None)
            if attribute.startswith("__") or attribute in _HARMLESS or not callable(inherited):
                continue
            # PyTorch wraps `step` of every class that is used, for its hooks: that is no change.
            if not callable(value) or inspect.unwrap(value) is not inspect.unwrap(inherited):
                return attribute
    return ""
