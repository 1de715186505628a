"""What probes cost: timed on the device they run on, charged at once where that is known, later where it is not."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from learnmech.probes.budget import Governor
from learnmech.probes.stopwatch import Stopwatch


class Charges:
    """Times the work of probes and enters it into their accounts.

    Args:
        governor: Keeps the accounts.
        device: Where the model lives.

    Attributes:
        host: Seconds of host time in probes.
        running: Work that a device has not finished yet.
    """

    def __init__(self, governor: Governor, device: torch.device) -> None:
        self.host = 0.0
        self._governor = governor
        self._device = device
        self.running: list[tuple[str, float, Stopwatch]] = []

    @contextmanager
    def of(self, name: str, *, new: bool) -> Iterator[Stopwatch]:
        """Charge a probe for what runs inside.

        Args:
            name: Name of the probe.
            new: True if a use of it begins here, False if it goes on.

        Yields:
            The watch that times it.
        """
        watch = Stopwatch(self._device)
        try:
            with watch:
                yield watch
        finally:
            self.host += watch.host
            known = watch.ready
            seconds = watch.seconds if known else watch.host
            self._governor.charge(name, seconds, new=new)
            if not known:
                self.running.append((name, seconds, watch))

    def poll(self) -> None:
        """Charge what the device has spent beyond the host time that was charged at once."""
        if not self.running:
            return
        still = []
        for name, charged, watch in self.running:
            if watch.ready:
                self._governor.correct(name, max(watch.seconds - charged, 0.0))
            else:
                still.append((name, charged, watch))
        self.running = still
