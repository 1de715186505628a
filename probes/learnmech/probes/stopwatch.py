"""How long a probe keeps the device busy: host time, and on CUDA the time between two events in the stream."""

import time
from types import TracebackType
from typing import Any, Self

import torch


class Stopwatch:
    """Times what runs inside it.

    Args:
        device: Where the work runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._events: tuple[Any, Any] | None = None
        if device.type == "cuda":
            cuda: Any = torch.cuda  # its Event is not typed
            self._events = (cuda.Event(enable_timing=True), cuda.Event(enable_timing=True))
            self._stream = cuda.current_stream(device)
        self.host = 0.0
        self._begin = 0.0

    def __enter__(self) -> Self:
        if self._events is not None:
            self._events[0].record(self._stream)
        self._begin = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.host += time.perf_counter() - self._begin
        if self._events is not None:
            self._events[1].record(self._stream)

    @property
    def ready(self) -> bool:
        """True once `seconds` can be read without waiting."""
        return self._events is None or bool(self._events[1].query())

    @property
    def seconds(self) -> float:
        """Seconds of device time where the device keeps time, else of host time.

        Host time on CUDA would include waiting for the training steps queued before the probe.
        """
        if self._events is None:
            return self.host
        self._events[1].synchronize()
        return float(self._events[0].elapsed_time(self._events[1])) / 1000.0
