"""Clocks and memory."""

import gc
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

T = TypeVar("T")


@dataclass(frozen=True)
class Spent:
    """What some work took, in seconds: of this process on all its cores, and on the wall."""

    cpu: float
    wall: float


def timed(work: Callable[[], T]) -> tuple[T, Spent]:
    """Run work and return its result with what it took."""
    gc.collect()  # what the tool before left behind is not charged to this one
    synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    synchronize()
    return result, Spent(time.process_time() - cpu, time.perf_counter() - wall)


def synchronize() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_bytes(work: Callable[[], object]) -> int:
    """Return the most memory that some work held at one time, beyond what was held before.

    On CUDA it is the allocator's maximum. On the CPU it is the highest level of PyTorch's allocator, from the
    profiler's record of every allocation and release, plus the highest level of NumPy's (where SciPy keeps its basis),
    from tracemalloc.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        tracemalloc.start()
        try:
            work()
            numpy_peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    return _highest(seen) + numpy_peak


def _highest(seen: profile) -> int:
    if seen.profiler is None or seen.profiler.kineto_results is None:
        return 0
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    level = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        highest = max(highest, level)
    return highest
