"""A diagonal P by which an optimizer divides, one tensor per parameter; or why there is none."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class NoPreconditioner:
    """There is no preconditioner to be had.

    Attributes:
        reason: Why, as a sentence.
        yet: True if there may be one after the next optimizer steps.
    """

    reason: str
    yet: bool


def local(tensor: Tensor) -> Tensor:
    """Return a detached tensor; of a DTensor, as FSDP2 makes them, the part that this process holds."""
    plain = tensor.detach()
    to_local = getattr(plain, "to_local", None)  # importing DTensor, to ask for its type, takes half a second
    return plain if to_local is None else to_local()


def sharded(tensor: Tensor) -> bool:
    """Tell whether processes hold different parts of a tensor, with the same answer on each of them."""
    return any(not placement.is_replicate() for placement in getattr(tensor, "placements", ()))


def wide(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor, detached, in at least float32."""
    plain = local(tensor)
    return plain.to(torch.promote_types(plain.dtype, torch.float32))


def inverse_root(diagonal: Sequence[Tensor]) -> list[Tensor]:
    """Return P^(-1/2): the scale that turns H into the symmetric matrix with the spectrum of P^(-1) H; 1/inf is 0."""
    return [wide(p).rsqrt() for p in diagonal]


def checked(
    diagonal: Sequence[object], parameters: Sequence[Tensor], source: str, hint: str = ""
) -> list[Tensor] | NoPreconditioner:
    """Return a diagonal fit for use: the shapes, devices and types of the parameters, every number positive or inf.

    Costs one pass over the diagonal and one transfer per device.

    Args:
        diagonal: One tensor per parameter, it is said.
        parameters: The parameters.
        source: Whose diagonal it is, for the reason.
        hint: What a zero says about the source.

    Returns:
        The diagonal, detached and in at least float32, or what is wrong with it.
    """
    if len(diagonal) != len(parameters):
        return NoPreconditioner(f"{source} offers {len(diagonal)} tensors for {len(parameters)} parameters", yet=False)
    result = []
    for index, (tensor, parameter) in enumerate(zip(diagonal, parameters, strict=True)):
        expected = local(parameter)
        if not isinstance(tensor, Tensor) or tensor.is_complex() or expected.is_complex():
            kind = str(tensor.dtype) if isinstance(tensor, Tensor) else type(tensor).__name__
            return NoPreconditioner(
                f"{source} offers {kind} for parameter {index} ({expected.dtype}); expected a real tensor", yet=False
            )
        found = local(tensor)
        if found.shape != expected.shape:
            return NoPreconditioner(
                f"{source} offers shape {tuple(found.shape)} for parameter {index}; expected {tuple(expected.shape)}",
                yet=False,
            )
        result.append(found.to(expected.device, torch.promote_types(expected.dtype, torch.float32)))
    smallest = _smallest(result)
    if smallest > 0.0:
        return result
    if smallest == 0.0:
        return NoPreconditioner(f"{source} divides by zero{hint}", yet=True)
    wrong = "NaN" if math.isnan(smallest) else f"{smallest:.3g}"
    return NoPreconditioner(f"{source} divides by {wrong}; expected positive numbers", yet=True)


def _smallest(tensors: Sequence[Tensor]) -> float:
    """Return the smallest number of all; NaN if there is one, inf if there are no numbers."""
    found: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.numel():
            found.setdefault(tensor.device, []).append(tensor.min().double())
    lowest = [torch.stack(minima).min().item() for minima in found.values()]
    return float(torch.tensor([*lowest, torch.inf], dtype=torch.float64).min())  # Python's `min` would lose a NaN
