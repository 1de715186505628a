"""Version canaries: did anything write to a tensor that belongs to the training?

Every in-place operation raises a tensor's version counter, so comparing counters tells of a write without reading the
tensor: no copy, no synchronization.
"""

from collections.abc import Iterable, Iterator

from torch import Tensor, nn
from torch.optim import Optimizer


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version  # inference tensors count no versions


class Canary:
    """The identity and version of named tensors at one moment."""

    def __init__(self, named: Iterable[tuple[str, Tensor]]) -> None:
        self._seen = [(name, tensor, _version(tensor)) for name, tensor in named]

    def touched(self) -> list[str]:
        """Name the tensors that were written to since."""
        return [name for name, tensor, version in self._seen if _version(tensor) != version]


def training_tensors(model: nn.Module, optimizers: Iterable[Optimizer]) -> Iterator[tuple[str, Tensor]]:
    """Yield what a measurement must not write to: parameters, their gradients, buffers and optimizer state."""
    for name, parameter in model.named_parameters():
        yield f"parameter {name}", parameter
        if parameter.grad is not None:
            yield f"gradient of {name}", parameter.grad
    for name, buffer in model.named_buffers():
        yield f"buffer {name}", buffer
    for optimizer in optimizers:
        for state in optimizer.state.values():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    yield f"optimizer state {key}", value
