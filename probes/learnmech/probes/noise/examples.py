"""Gradient noise from the single examples of a batch, as the backward pass of the update goes through the layers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from learnmech.probes.isolation import Skip
from learnmech.probes.noise.contributions import Sums
from learnmech.probes.noise.leaves import Seen
from learnmech.probes.noise.live import LivePieces
from learnmech.probes.noise.per_example import PerExample
from learnmech.probes.probe import TrainingView

ALWAYS, EVERY = 3, 10
"""The first measurements are held against the gradient parameter by parameter, and every tenth from then on: it adds a
fifth to the cost."""


class LiveExamples(LivePieces):
    """Watches an update whose pieces are the examples of its one batch, weighed alike.

    Args:
        view: The training, before the backward pass of the update.
        batch_size: Examples in the batch that will come.
        uses: Measurements before.
        per_layer: Whether to keep scopes apart, or only the whole model.
    """

    def __init__(self, view: TrainingView, *, batch_size: int, uses: int, per_layer: bool) -> None:
        super().__init__(view, expected=1, units=None, weighted=False, per_layer=per_layer)
        self._batch_size = batch_size
        self._evidence: dict[str, Tensor] = {}
        verify = uses < ALWAYS or uses % EVERY == 0
        self._examples = PerExample(view.model, view.parameters, batch_size, verify=verify, seed=view.step)
        self._examples.arm()

    def close(self) -> None:
        """Stop watching."""
        super().close()
        self._examples.disarm()

    @property
    def doubts(self) -> Sequence[Tensor]:
        """Numbers to be read back with the row, for `judge`."""
        device = self._membership.device
        return [row.to(device, non_blocking=True) for row in self._evidence.values()]

    def judge(self, numbers: Sequence[float]) -> str:
        """Return why the row is not to be used after all; '' if it is."""
        pairs = zip(numbers[::2], numbers[1::2], strict=True)
        refuted = self._examples.judge(dict(zip(self._evidence, pairs, strict=True)))
        return "; ".join(f"{name}: {reason}" for name, reason in list(refuted.items())[:3])

    def _sums(self, seen: Seen, view: TrainingView) -> Sums:
        """Return the sums over the examples.

        Raises:
            Skip: They are not all there.
        """
        self._evidence = self._examples.evidence()
        uncovered = [f"{name} ({reason})" for name, reason in self._examples.uncovered.items()]
        why = self._examples.reason or ", ".join(uncovered[:3])
        if len(seen.squares) > 1:
            why = "the gradient is a sum of several backward passes"
        if view.examples != self._batch_size and not why:
            raise Skip(f"a batch of {view.examples} examples, where {self._batch_size} were expected")
        if why:
            self._hooks.trouble = f"not every parameter tells its examples apart: {why}"[:300]
            raise Skip(self._hooks.trouble)
        rows = self._examples.in_scopes(self._members)
        sums = Sums(len(self.scopes), device=seen.squares.device)
        squares = torch.stack([rows[scope].to(seen.squares.device) for scope in self.scopes])
        # the loss of each process is a mean over its own examples
        sums.add_pieces(squares / self._divisor(view) ** 2, weight=1.0 / self._batch_size)
        return sums
