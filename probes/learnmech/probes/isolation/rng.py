"""Random streams: read all of them, put all of them back, and draw other ones in between.

Streams that a training step may draw from: Python's `random`, NumPy's legacy generator, torch on the CPU and on every
accelerator the model lives on, and generators that the model owns (`torch.Generator`, `numpy.random.Generator`,
`numpy.random.RandomState`, `random.Random`).
"""

import logging
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

logger = logging.getLogger("learnmech.probes")

OWNED = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
"""Types of generators that a model may hold as an attribute."""

_NUMPY_SEEDS = 2**32
"""numpy.random.seed takes 32 bits."""


@dataclass(frozen=True, slots=True)
class Stream:
    """One random stream: how to read its state, put it back, and start it elsewhere."""

    name: str
    read: Callable[[], object]
    write: Callable[[object], None]
    seed: Callable[[int], None]


def _numpy_generator(generator: np.random.Generator) -> Stream:
    bits = generator.bit_generator

    def write(state: object) -> None:
        bits.state = state  # type: ignore[assignment]  # a state is whatever this very generator returned

    def seed(value: int) -> None:
        bits.state = type(bits)(value).state

    return Stream(f"{type(bits).__name__} of the model", lambda: bits.state, write, seed)


def _seed_generator(generator: torch.Generator, value: int) -> None:
    generator.manual_seed(value)


def _owned(generator: object) -> Stream:
    if isinstance(generator, torch.Generator):
        return Stream(
            "torch.Generator of the model",
            generator.get_state,
            generator.set_state,  # type: ignore[arg-type]  # a state is what get_state returned
            lambda value: _seed_generator(generator, value),
        )
    if isinstance(generator, np.random.Generator):
        return _numpy_generator(generator)
    if isinstance(generator, np.random.RandomState):
        return Stream(
            "RandomState of the model",
            generator.get_state,
            generator.set_state,  # type: ignore[arg-type]  # a state is what get_state returned
            lambda value: generator.seed(value % _NUMPY_SEEDS),
        )
    if isinstance(generator, random.Random):
        return Stream("random.Random of the model", generator.getstate, generator.setstate, generator.seed)  # type: ignore[arg-type]
    raise TypeError(f"{type(generator).__name__} is not a random generator; expected one of {OWNED}")


def _accelerator(device: torch.device) -> Stream:
    module = torch.get_device_module(device)
    where = () if device.type == "mps" else (device,)  # there is only one

    def seed(value: int) -> None:
        generator = torch.Generator(device=device)  # seeding the module itself would seed every device of the kind
        generator.manual_seed(value)
        module.set_rng_state(generator.get_state(), *where)

    return Stream(
        f"torch on {device}",
        lambda: module.get_rng_state(*where),
        lambda state: module.set_rng_state(state, *where),
        seed,
    )


def streams(devices: Iterable[torch.device] = (), owned: Iterable[object] = ()) -> list[Stream]:
    """List the random streams of a process, of `devices` other than the CPU, and of the generators in `owned`."""
    found = [
        Stream("random", random.getstate, random.setstate, random.seed),  # type: ignore[arg-type]
        Stream(
            "numpy.random",
            np.random.get_state,
            np.random.set_state,  # type: ignore[arg-type]
            lambda value: np.random.seed(value % _NUMPY_SEEDS),  # noqa: NPY002
        ),
        Stream(
            "torch on the CPU",
            torch.default_generator.get_state,
            torch.default_generator.set_state,  # type: ignore[arg-type]
            lambda value: _seed_generator(torch.default_generator, value),
        ),
    ]
    found += [_accelerator(device) for device in devices if device.type in ("cuda", "xpu", "mps")]
    return found + [_owned(generator) for generator in owned]


class Streams:
    """The random streams at one moment.

    Args:
        devices: Devices of the model.
        owned: Generators of the model.
    """

    def __init__(self, devices: Iterable[torch.device] = (), owned: Iterable[object] = ()) -> None:
        self._streams = streams(devices, owned)
        self._states = [stream.read() for stream in self._streams]

    def restore(self) -> None:
        """Put every stream back to that moment; a stream that cannot be is reported, the others are put back."""
        for stream, state in zip(self._streams, self._states, strict=True):
            try:
                stream.write(state)
            except Exception as error:  # noqa: BLE001 (every other stream must still be put back)
                logger.error("could not put back the random stream %s: %r", stream.name, error)

    def draw(self, number: int) -> None:
        """Put every stream to its state of that moment (0), or to another fixed state (1, 2, ...)."""
        if number == 0:
            self.restore()
            return
        for index, stream in enumerate(self._streams):
            stream.seed(number * 1_000_003 + index)  # streams that start alike would give correlated noise


@contextmanager
def preserved(devices: Iterable[torch.device] = (), owned: Iterable[object] = ()) -> Iterator[Streams]:
    """Put every random stream back at the end, whatever happened inside."""
    kept = Streams(devices, owned)
    try:
        yield kept
    finally:
        kept.restore()
