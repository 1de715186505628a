"""Reading numbers back from a device without waiting for it."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Then = Callable[[list[float]], None]
"""What to do with the numbers once they are here."""


@dataclass(frozen=True, slots=True)
class _Copy:
    """Numbers on their way: the copy is complete once `event` is."""

    host: Tensor
    device: Tensor  # kept alive until the copy is done
    event: Any
    then: Then


class Readback:
    """A queue of numbers that are copied from the device while training goes on.

    On CUDA each submission is one asynchronous copy into pinned memory and an event; `poll` hands over what has
    arrived. On other devices reading does not have to wait, and the numbers are handed over at once.

    Attributes:
        queue: What is on its way.
    """

    def __init__(self) -> None:
        self.queue: deque[_Copy] = deque()

    def submit(self, values: Sequence[Tensor], then: Then) -> None:
        """Read tensors, and call `then` with their elements, now or at a later `poll`.

        Args:
            values: Tensors of any shape.
            then: Called with one float for each element, tensor by tensor in row-major order.
        """
        if not values:
            then([])
            return
        device = values[0].device
        wide = torch.float32 if device.type == "mps" else torch.float64
        row = torch.cat([value.detach().reshape(-1).to(device=device, dtype=wide) for value in values])
        if device.type != "cuda":
            then(row.tolist())
            return
        host = torch.empty(row.shape, dtype=row.dtype, pin_memory=True)
        host.copy_(row, non_blocking=True)
        cuda: Any = torch.cuda  # its Event is not typed
        event = cuda.Event()
        event.record(torch.cuda.current_stream(device))
        self.queue.append(_Copy(host, row, event, then))

    def poll(self) -> None:
        """Hand over what has arrived."""
        while self.queue and self.queue[0].event.query():
            copy = self.queue.popleft()
            copy.then(copy.host.tolist())

    def drain(self) -> None:
        """Wait for the device and hand over everything."""
        while self.queue:
            copy = self.queue.popleft()
            copy.event.synchronize()
            copy.then(copy.host.tolist())
