"""Gradient noise from the pieces that an update consists of anyway: processes and micro-batches."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from learnmech.observables import Status
from learnmech.probes.distributed.fsdp import is_shard, local
from learnmech.probes.estimators.noise import NoiseParts
from learnmech.probes.estimators.squares import square_sum
from learnmech.probes.isolation import Skip
from learnmech.probes.noise.contributions import Sums, estimates
from learnmech.probes.noise.leaves import LeafHooks, Seen, sent
from learnmech.probes.noise.tally import COARSE, EXACT, Tally, Witness
from learnmech.probes.noise.units import Units, counted
from learnmech.probes.probe import TrainingView

UNKNOWN_FACTOR = (
    "the gradient was divided by {:.4g} after its pieces were seen, by a loss scale or by clipping: tell which, by "
    "Recorder(scaler=...) or Recorder(gradient_clip=...), or call recorder.after_backward(batch) before both"
)


@dataclass(frozen=True, slots=True)
class _Gradient:
    """The complete gradient, as it was looked at.

    Attributes:
        whole: |g|^2 of parameters that this process holds whole. [scopes]
        shards: |g|^2 of its shards of the others. [scopes]
        sample: Some numbers of g. [samples]
    """

    whole: Tensor
    shards: Tensor
    sample: Tensor


class LivePieces:
    """Watches one update and tells what its pieces say of the noise. Evaluates nothing, and waits for nothing.

    Args:
        view: The training, before the backward passes of the update.
        expected: Micro-batches of a usual update in this process.
        units: Tells the units of a batch (tokens, say); None: its examples.
        weighted: True if the training weighs micro-batches (and processes) by their units, False if all count alike.
        members: Scopes, and the parameters in each.
    """

    def __init__(
        self,
        view: TrainingView,
        *,
        expected: int,
        members: Mapping[str, Sequence[str]],
        units: Units | None = None,
        weighted: bool = False,
    ) -> None:
        self.void = ""
        """Why the latest row was not to be used, for a reason that may be there again."""
        self.factor = math.nan
        """What the gradient that was looked at is to be multiplied with, so that clipping and a loss scale are out."""
        self.unscaled = False
        """Whether an update has shown that there is no loss scale: its gradient was what its pieces add up to."""
        self._names = list(view.parameters)
        self.scopes = list(members)
        self._members = members
        self._membership = _membership(self._members, self._names, view.parameters)
        self._expected = expected
        self._units = units
        self._weighted = weighted
        self._counts: list[tuple[float | Tensor, float | Tensor]] = []
        self._looked: _Gradient | None = None
        self._clippable = False
        self._loss_scale: Tensor | float | None = None
        self._several = view.processes > 1
        self._hooks = LeafHooks(view.model, view.parameters, expected)
        self._hooks.arm()

    @property
    def trouble(self) -> str:
        """Why nothing could be made of what was seen."""
        return self._hooks.trouble

    @property
    def seconds(self) -> float:
        """Host time that the hooks have taken."""
        return self._hooks.seconds

    def close(self) -> None:
        """Stop watching."""
        self._hooks.disarm()

    def next_piece(self, batch: Any, examples: int | None) -> None:
        """Tell that the backward pass of a micro-batch has ended."""
        self._hooks.next_piece()
        known = float(examples or 0)  # none: the estimate says that they could not be counted
        self._counts.append((self._units_of(batch, known), known))

    def _units_of(self, batch: Any, examples: float) -> float | Tensor:
        if self._units is None:
            return examples
        found, trouble = counted(self._units, batch)
        self._hooks.trouble = trouble or self._hooks.trouble
        return found

    def look(self, view: TrainingView) -> None:
        """Take the squared norms of the complete gradient while it is there; at a later call, of the one of then."""
        if 0 < len(self._counts) < self._expected:
            return  # more is to come
        gradients = {name: p.grad for name, p in view.parameters.items() if p.grad is not None}
        device = local(next(iter(view.parameters.values()))).device
        whole, shards = ([torch.zeros((), dtype=torch.float64, device=device)] * len(self._names) for _ in range(2))
        for index, name in enumerate(self._names):
            gradient = gradients.get(name)
            if gradient is not None and gradient.layout is torch.strided:  # what is sparse the hooks have told
                where = shards if is_shard(gradient) else whole
                where[index] = square_sum(local(gradient)).to(device, non_blocking=True)
        rows = [self._in_scopes(torch.stack(squares)) / view.gradient_scale**2 for squares in (whole, shards)]
        sample = self._hooks.sample_of(gradients) / view.gradient_scale
        self._looked = _Gradient(rows[0], rows[1], sample)
        self._clippable = bool(view.gradient_method)
        self._loss_scale = view.loss_scale if self._clippable else None

    def tally(self, view: TrainingView) -> Tally:
        """Return the row of this update in this process.

        Raises:
            Skip: Nothing can be said of this update.
        """
        self.close()
        seen, looked = self._hooks.seen(), self._looked
        if seen is None:
            raise Skip(self.trouble or "no backward pass was seen")
        if looked is None or len(seen.squares) < self._expected:
            raise Skip("an update of fewer micro-batches than usual")
        if list(view.parameters) != self._names:
            raise Skip("parameters came or went during the update")
        # whole gradients are the same in every process, shards add up to one
        whole = looked.whole / view.processes + looked.shards
        first = 1.0 if view.process == 0 else 0.0
        return Tally.of(self._sums(seen, view), whole, seen.sample / self._divisor(view), looked.sample * first)

    def _divisor(self, view: TrainingView) -> Tensor | float:
        """Return what training divides a contribution by: it averages over processes, and takes the loss scale out."""
        return view.processes * (1.0 if self._loss_scale is None else self._loss_scale)

    def _sums(self, seen: Seen, view: TrainingView) -> Sums:
        """Return the sums over the pieces of this process."""
        counts, pieces = self._counts, len(seen.squares)
        if len(counts) != pieces:  # nothing told where they end: they are taken to be like the last
            known = float(view.examples or 0)
            counts = [(self._units_of(view.batch, known), known)] * pieces
            if self.trouble:
                raise Skip(self.trouble)
        device = seen.squares.device
        sums = Sums(len(self.scopes), device=device)
        squares = self._in_scopes(seen.squares.T) / self._divisor(view) ** 2
        units, examples = (_column(numbers, device) for numbers in zip(*counts, strict=True))
        sums.add_pieces(squares, weight=units if self._weighted else 1.0, units=units, examples=examples)
        return sums

    def parts(
        self, tally: Tally, numbers: Sequence[float], *, precise: bool, population: int | None
    ) -> Mapping[str, NoiseParts]:
        """Return the estimates of each scope from the numbers of a row, added up over processes.

        Args:
            tally: The row.
            numbers: Its numbers, followed by those of `doubts`.
            precise: False where half precision is in the training step.
            population: Size of the data set, where batches are drawn from it without replacement.
        """
        sums, whole, witness = tally.read(numbers[: len(tally.row)])
        reason = _mismatch(witness, whole[0], precise=precise) or self.judge(numbers[len(tally.row) :])
        if not reason and self._clippable and self._loss_scale is None:
            self.unscaled = self.unscaled or not witness.changed
            reason = "" if self.unscaled else UNKNOWN_FACTOR.format(witness.factor)
        # several processes have nothing else to measure from, and other numbers may be there the next time
        nothing_compared = self._several and math.isnan(witness.factor)
        self.void = reason if 0 < whole[0] < math.inf and not nothing_compared else ""
        if reason:
            nan = float("nan")
            status = Status.UNDETERMINED if math.isfinite(whole[0]) else Status.NON_FINITE
            return {scope: NoiseParts(nan, nan, nan, 0, status, reason) for scope in self.scopes}
        seen = [value * witness.factor**2 for value in whole]  # |g|^2 as it was when the pieces were seen
        # before clipping there is a loss scale at most; after it that is out or there is none, and the rest is clipping
        scale = 1.0 if self._clippable else witness.factor
        self.factor = witness.factor / scale
        found = estimates(sums, seen, population=population, scale=scale)
        return dict(zip(self.scopes, found, strict=True))

    @property
    def doubts(self) -> Sequence[Tensor]:
        """Numbers to be read back with the row, for `judge`."""
        return ()

    def judge(self, numbers: Sequence[float]) -> str:  # noqa: ARG002 (for those that have doubts)
        """Return why the row is not to be used after all; '' if it is."""
        return ""  # `parts` compares with the gradient itself

    def _in_scopes(self, squares: Tensor) -> Tensor:
        return self._membership @ squares


def method_of(view: TrainingView) -> str:
    """Name the pieces that the updates of a training consist of."""
    if view.processes == 1:
        return "micro_batches"
    return "ranks" if view.micro_batches == 1 else "ranks_and_micro_batches"


def _membership(members: Mapping[str, Sequence[str]], names: Sequence[str], parameters: Mapping[str, Tensor]) -> Tensor:
    """Return ones where a parameter is in a scope, [scopes, parameters], on the device of the parameters."""
    column = {name: index for index, name in enumerate(names)}
    matrix = torch.zeros(len(members), len(names), dtype=torch.float64)
    for row, held in enumerate(members.values()):
        matrix[row, [column[name] for name in held]] = 1.0
    return sent(matrix, local(parameters[names[0]]).device)


def _column(numbers: Sequence[float | Tensor], device: torch.device) -> float | Tensor:
    """Return one number if all are the same, else all of them on the device. [K]."""
    # a number of the host is not copied on its own: its device would be waited for
    numbers = [float(n) if isinstance(n, Tensor) and n.device.type == "cpu" != device.type else n for n in numbers]
    if all(isinstance(number, float | int) for number in numbers):
        known = [float(number) for number in numbers]
        return known[0] if len(set(known)) == 1 else sent(torch.tensor(known, dtype=torch.float64), device)
    return torch.stack([torch.as_tensor(number).reshape(()).double().to(device) for number in numbers])


def _mismatch(witness: Witness, square: float, *, precise: bool) -> str:
    """Say why what was seen is not what the gradient, of this squared norm, is made of; '' if it is."""
    if not 0 < square < math.inf:
        return "the gradient is zero" if square == 0.0 else "the gradient is not finite"
    if not witness.factor > 0:
        return "the numbers of the gradient that are compared with what was seen are all zero or not finite"
    if witness.rest > (EXACT if precise else COARSE):
        return (
            f"what the backward passes contributed does not add up to the gradient (a rest of {witness.rest:.1%}): it "
            "was changed since, or another piece is in it"
        )
    return ""
