"""What modules returned during one evaluation of a loss: the network's outputs, wherever the loss computed them."""

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from learnmech.probes.isolation.batch import tensors


@dataclass(frozen=True, eq=False, slots=True)
class Output:
    """A floating-point tensor with at least one dimension that a module returned.

    Attributes:
        place: Its number in the order of calls: the same in every evaluation of the same loss.
        module: The module.
        tensor: The tensor.
    """

    place: int
    module: nn.Module
    tensor: Tensor


@contextmanager
def recorded(places: Collection[int] | None = None) -> Iterator[list[Output]]:
    """Record what modules return in this thread; those called last come last, a module after its submodules.

    Tensors are found in tuples, mappings and dataclasses. Scalars are left out: they are losses, not outputs.

    Args:
        places: Keep only these, so that the others' memory is freed; None: all.

    Yields:
        The outputs, filled in while the context lasts.
    """
    found: list[Output] = []
    thread = threading.get_ident()
    place = 0

    def note(module: nn.Module, _: Any, returned: Any) -> None:
        nonlocal place
        if threading.get_ident() != thread:
            return
        for tensor in tensors(returned):
            if tensor.is_floating_point() and tensor.dim() > 0:
                if places is None or place in places:
                    found.append(Output(place, module, tensor))
                place += 1

    handle = register_module_forward_hook(note)
    try:
        yield found
    finally:
        handle.remove()
