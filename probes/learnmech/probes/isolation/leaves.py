"""Stand-ins for a model's tensors: fresh leaves to differentiate, and copies of everything a step may write to."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from learnmech.probes.isolation.refusal import Refusal
from learnmech.probes.isolation.source import optimized

FROZEN_LIMIT = 256 * 2**20
"""Frozen parameters are copied up to this many bytes, or as many as there are trainable ones (a momentum teacher is as
large as its student and is written to in the step; the frozen base under an adapter is far larger and is not)."""


class _Copy:
    """A copy of a tensor, made anew once it was written to."""

    def __init__(self, original: Tensor) -> None:
        self._original = original
        self.current = original.detach().clone()
        self._version = self.current._version

    def refresh(self) -> Tensor:
        if self.current._version != self._version:
            self.current = self._original.detach().clone()  # not written over: graphs may have kept the old copy
            self._version = self.current._version
        return self.current


class Copies:
    """Copies of tensors that a step may write to, to stand in for them.

    Args:
        originals: The tensors by name.

    Attributes:
        first: The copies as they are at the beginning, by name.
    """

    def __init__(self, originals: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            self._copies = {name: _Copy(tensor) for name, tensor in originals.items()}
        self.first = {name: copy.current for name, copy in self._copies.items()}
        self._keys = {name: (id(originals[name]), id(self.first[name])) for name in originals}

    def twins(self) -> dict[int, Tensor]:
        """Return the copies for the next evaluation, by identity of the original and of the first copy.

        One that the evaluation before wrote to (counters, moving averages, queues) is made anew from the original.
        """
        found: dict[int, Tensor] = {}
        with torch.no_grad():
            for name, copy in self._copies.items():
                found.update(dict.fromkeys(self._keys[name], copy.refresh()))
        return found


class StandIns:
    """Tensors to swap into a model for the time of a measurement.

    Leaves are copies, not views: embeddings with `max_norm`, weight clipping and cuDNN's flattening of recurrent
    weights write to parameters in the forward pass. Tied tensors come once, under their first name.

    Args:
        model: The model.
        optimizers: Its optimizers: parameters that none of them holds count as frozen.

    Attributes:
        leaves: For each trainable parameter a fresh leaf with the same value, by name.
        tensors: All stand-ins by name: leaves, copies of frozen parameters, copies of buffers.

    Raises:
        Refusal: A parameter is sharded or not initialized, or none is trainable.
    """

    def __init__(self, model: nn.Module, optimizers: Iterable[Optimizer] = ()) -> None:
        parameters = dict(model.named_parameters())
        for name, parameter in parameters.items():
            _check(name, parameter)
        trainable = optimized(model, optimizers)
        if not trainable:
            raise Refusal(
                "The model has no trainable parameter.", "Set requires_grad on the parameters that are trained."
            )
        frozen = {name: p for name, p in parameters.items() if name not in trainable}
        written = dict(model.named_buffers())
        if sum(p.nbytes for p in frozen.values()) <= max(FROZEN_LIMIT, sum(p.nbytes for p in trainable.values())):
            written, frozen = frozen | written, {}
        with torch.no_grad():
            self.leaves = {name: p.detach().clone().requires_grad_() for name, p in trainable.items()}
            self._copies = Copies(written)
            fixed = self.leaves | {name: p.detach() for name, p in frozen.items()}
        self.tensors = fixed | self._copies.first
        originals = parameters | written
        self._fixed = {id(originals[name]): twin for name, twin in fixed.items()} | {id(t): t for t in fixed.values()}

    def twins(self) -> dict[int, Tensor]:
        """Return the stand-ins for the next evaluation, by identity of the original and of the first stand-in.

        Leaves are always the same; a buffer that the evaluation before wrote to is copied anew from the original.
        """
        return self._fixed | self._copies.twins()


def _check(name: str, parameter: Tensor) -> None:
    if hasattr(parameter, "_local_tensor") or type(parameter).__name__ == "FlatParameter":  # FSDP2 and FSDP1
        raise Refusal(f"Parameter {name} is sharded over processes, and this was asked of one of them.")
    if is_lazy(parameter):
        raise Refusal(f"Parameter {name} has no shape yet.", "Run the model once before measuring.")
