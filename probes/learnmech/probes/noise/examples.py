"""Gradient noise from the single examples of an update, as its backward passes go through the layers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from learnmech.probes.estimators.noise import NoiseParts
from learnmech.probes.isolation import Skip
from learnmech.probes.noise.contributions import Sums
from learnmech.probes.noise.leaves import Seen
from learnmech.probes.noise.live import LivePieces
from learnmech.probes.noise.per_example import PerExample
from learnmech.probes.noise.tally import Tally
from learnmech.probes.probe import TrainingView

ALWAYS, EVERY = 3, 10
"""The first measurements are held against the gradient parameter by parameter, and every tenth from then on: it adds a
fifth to the cost. After one that does not add up the next ones are first ones again."""


class LiveExamples(LivePieces):
    """Watches an update whose pieces are the examples of its micro-batches, of which there may be one.

    With a mean over K micro-batches, each a mean over its n_k examples, an example weighs 1 / (K n_k); where micro-
    batches are weighed by their examples, all weigh alike.

    Args:
        view: The training, before the backward passes of the update.
        sizes: Examples in each micro-batch that will come.
        members: Scopes, and the parameters in each.
        uses: Measurements before in which nothing was wrong.
        weighted: True if the training weighs micro-batches by their examples, False if all count alike.
    """

    def __init__(
        self,
        view: TrainingView,
        *,
        sizes: Sequence[int],
        members: Mapping[str, Sequence[str]],
        uses: int,
        weighted: bool = False,
    ) -> None:
        super().__init__(view, expected=len(sizes), members=members, weighted=weighted)
        self._view = view
        self._sizes = sizes
        self._verify = uses < ALWAYS or uses % EVERY == 0
        self._evidence: list[dict[str, Tensor]] = []
        self._watched: list[PerExample] = []
        try:
            self._watch()
        except Exception:
            self.close()  # nobody else can: there is no such object
            raise

    def _watch(self) -> None:
        """Watch the backward pass of the next micro-batch."""
        number, view = len(self._watched), self._view
        seed = view.step * len(self._sizes) + number  # other directions at each check
        found = PerExample(view.model, view.parameters, self._sizes[number], verify=self._verify, seed=seed)
        found.arm()
        self._watched.append(found)

    @property
    def seconds(self) -> float:
        """Host time that the hooks have taken."""
        return super().seconds + sum(examples.seconds for examples in self._watched)

    def close(self) -> None:
        """Stop watching."""
        super().close()
        for examples in self._watched:
            examples.disarm()

    def next_piece(self, batch: Any, examples: int | None) -> None:
        """Tell that the backward pass of a micro-batch has ended."""
        super().next_piece(batch, examples)
        self._watched[-1].disarm()
        if len(self._watched) < len(self._sizes):
            self._watch()

    def parts(
        self, tally: Tally, numbers: Sequence[float], *, precise: bool, population: int | None
    ) -> Mapping[str, NoiseParts]:
        """Return the estimates of each scope; see `LivePieces.parts`."""
        found = super().parts(tally, numbers, precise=precise, population=population)
        # pieces of one example each: none is larger than another, whatever they weigh
        return {scope: replace(part, lean=math.nan) for scope, part in found.items()}

    @property
    def doubts(self) -> Sequence[Tensor]:
        """Numbers to be read back with the row, for `judge`."""
        device = self._membership.device
        return [row.to(device, non_blocking=True) for found in self._evidence for row in found.values()]

    def judge(self, numbers: Sequence[float]) -> str:
        """Return why the row is not to be used after all; '' if it is."""
        pairs = iter(zip(numbers[::2], numbers[1::2], strict=True))
        refuted: dict[str, str] = {}
        for examples, found in zip(self._watched, self._evidence, strict=True):
            refuted |= examples.judge({name: next(pairs) for name in found})
        return "; ".join(f"{name}: {reason}" for name, reason in list(refuted.items())[:3])

    def _sums(self, seen: Seen, view: TrainingView) -> Sums:
        """Return the sums over the examples.

        Raises:
            Skip: They are not all there.
        """
        found: list[Any] = [examples for _, examples in self._counts] or [view.examples]
        told = bool(self._counts) or len(self._sizes) == 1
        if told and found != list(self._sizes):  # what else went wrong comes from that, and need not come again
            raise Skip(f"micro-batches of {found} examples, where {list(self._sizes)} were expected")
        self._hooks.trouble = self._trouble(len(seen.squares))[:300]
        if self.trouble:
            raise Skip(self.trouble)
        device = seen.squares.device
        sums = Sums(len(self.scopes), device=device)
        for examples, size in zip(self._watched, self._sizes, strict=True):
            self._evidence.append(examples.evidence())
            rows = examples.in_scopes(self._members)
            squares = torch.stack([rows[scope].to(device) for scope in self.scopes])
            # processes and micro-batches are means over their own examples, up to a factor that all have in common
            weight = 1.0 if self._weighted else 1.0 / size
            sums.add_pieces(squares / self._divisor(view) ** 2, weight=weight)
        return sums

    def _trouble(self, passes: int) -> str:
        """Say why examples are not told apart, and will not be the next time; '' if they are."""
        if len(self._sizes) > 1 and not self._counts:
            return "micro-batches are not told apart: call recorder.after_backward(batch) after each of them"
        if passes > len(self._watched):
            return "the gradient is a sum of several backward passes"
        for examples in self._watched:
            uncovered = [f"{name} ({reason})" for name, reason in examples.uncovered.items()]
            why = examples.reason or ", ".join(uncovered[:3])
            if why:
                return f"not every parameter tells its examples apart: {why}"
        return ""
