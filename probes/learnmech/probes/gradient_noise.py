"""Gradient noise: |G|^2, tr Sigma and their ratio, from pieces of the current batch and from two batches."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from learnmech.observables import Status
from learnmech.probes.context import batch_coupling
from learnmech.probes.estimators import RatioWindow, noise_between, noise_from_pieces
from learnmech.probes.isolation import PureLoss, Refusal, Skip
from learnmech.probes.isolation.batch import clone, tensors
from learnmech.probes.pieces import REMEDY, count, split
from learnmech.probes.probe import BaseProbe, TrainingView
from learnmech.probes.schedule import Schedule
from learnmech.wire import Measurement

PIECES = 4
"""Pieces of a batch: the estimate of tr Sigma from K pieces has K - 1 degrees of freedom; four cost one gradient of the
whole batch, like any other number, and two tensors of the model's size more than two."""

PATIENCE = 3
"""Batches in a row too small to be cut after which there will be none to cut."""

Split = Callable[[Any, int], list[Any]]


class GradientNoiseScale(BaseProbe):
    """Measures `noise_trace`, `grad_sq_norm`, `noise_scale` and `noise_trace_between`.

    - From disjoint pieces of the current batch: unbiased estimates of tr Sigma and |G|^2; the latter may be negative.
      Dropout draws other masks for each piece, so its noise counts as part of Sigma.
    - From the batch of the measurement before, kept, and the current one, both at the current weights: tr Sigma once
      more. The two agree if the noise of a batch falls as 1/B.
    - Batches must be new to the weights: an update has moved the weights along the noise of its own batch, so that at
      the new weights this batch has too small a gradient (|G|^2 came out negative on average, at 0.3 of the largest
      stable learning rate). After an update, as in a `Recorder`, the batches of earlier measurements are taken
      instead; what remains of the effect fades with the steps between measurements, so do not measure at every step.
    - `noise_scale` is the ratio of the means of the last measurements, never a mean of ratios; `undetermined` as long
      as |G|^2 cannot be told from zero.

    Costs two gradients of a batch.

    Args:
        schedule: When to measure, such as `every(20)`; None leaves it to the budget.
        window: Measurements that `noise_scale` averages over.
        split: `split(batch, pieces)` returns a list of smaller batches, where batches cannot be cut along the first
            dimension of all their tensors.
        name: Name, if there are two probes of this class.

    References:
        McCandlish et al. 2018, arXiv 1812.06162, appendix A.1; interval of the ratio: Fieller 1954.
    """

    default_name: ClassVar[str] = "gradient_noise_scale"
    observables: ClassVar[tuple[str, ...]] = ("noise_trace", "grad_sq_norm", "noise_scale")
    replays: ClassVar[bool] = True

    def __init__(
        self,
        schedule: Schedule | None = None,
        *,
        window: int = 50,
        split: Split | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(schedule, name=name)
        if window < 2:
            raise ValueError(f"GradientNoiseScale(window={window!r}): expected 2 measurements or more, such as 50")
        self.window = window
        self.split = split
        self.reset()

    def reset(self) -> None:
        """Forget the window and the held batch of an earlier run."""
        self._pairs = RatioWindow(self.window)
        self._held: Any = None
        self._older: Any = None
        self._too_small = 0

    def __getstate__(self) -> dict[str, Any]:
        """Leave held batches out of copies and pickles."""
        return self.__dict__ | {"_held": None, "_older": None}

    def measure(self, view: TrainingView) -> list[Measurement]:
        """Measure at the weights and batch of `view`.

        Raises:
            Refusal: Batches cannot be cut into pieces.
            Skip: This batch is too small.
        """  # noqa: DOC502 (raised by _pieces)
        batch, held = self._batches(view)
        if batch is None:
            return []  # the first batch after an update: it serves the next measurement
        pieces = self._pieces(view, batch)
        sizes = [count(piece) or 0 for piece in pieces]
        if min(sizes) < 1:
            raise Refusal("split(batch, pieces) returned a piece whose examples cannot be counted.")

        def work(loss: PureLoss) -> tuple[list[list[Tensor]], list[Tensor] | None]:
            first = 1 + view.step * (PIECES + 2)  # other random numbers at each step and in each piece
            found = [_gradient(loss, piece, first + index) for index, piece in enumerate(pieces)]
            return found, None if held is None else _gradient(loss, held, first + PIECES)

        gradients, other = view.isolate(work)
        between = None
        if other is not None:
            total = sum(sizes)
            mean = [
                torch.stack([g * (size / total) for g, size in zip(column, sizes, strict=True)]).sum(dim=0)
                for column in zip(*gradients, strict=True)
            ]
            between = noise_between(mean, other, (total, count(held) or total))
        population = view.dataset_size if view.dataset_size and view.dataset_size >= sum(sizes) else None
        parts = noise_from_pieces(gradients, sizes, population=population)
        self._pairs.append(parts.noise_trace, parts.grad_sq_norm)
        return self._measurements(parts.noise_trace, parts.grad_sq_norm, between, len(pieces))

    def _batches(self, view: TrainingView) -> tuple[Any, Any]:
        """Return the batch to cut and another one to compare it with, and keep the current one for later."""
        older, held = self._older, self._held
        self._older, self._held = (held if view.used else None), clone(view.batch)
        if view.full_batch:
            return view.batch, None
        batch, other = (held, older) if view.used else (view.batch, held)
        return batch, None if _same(other, batch) else other

    def _pieces(self, view: TrainingView, batch: Any) -> list[Any]:
        total = count(batch)
        smallest = 2 if batch_coupling(view.model) else 1  # batch statistics of one example do not exist
        if total is not None and total < 2 * smallest:
            self._too_small += 1
            if self._too_small < PATIENCE:
                raise Skip(f"a batch of {total} examples is too small to cut")
            raise Refusal(f"A batch of {total} examples cannot be cut into two pieces.", "Use larger batches.")
        self._too_small = 0
        wanted = PIECES if total is None or total >= PIECES * smallest else 2
        pieces = split(batch, wanted) if self.split is None else list(self.split(batch, wanted))
        if len(pieces) < 2:
            raise Refusal(f"split(batch, {wanted}) returned {len(pieces)} pieces, expected {wanted}.", REMEDY)
        return pieces

    def _measurements(self, trace: float, square: float, between: float | None, pieces: int) -> list[Measurement]:
        method = f"{pieces}_pieces"
        trace_error, square_error = self._scatter()
        found = [
            Measurement("noise_trace", trace, stderr=trace_error, method=method),
            Measurement("grad_sq_norm", square, stderr=square_error, method=method),
        ]
        if between is not None:
            found.append(Measurement("noise_trace_between", between, method="two_batches"))
        return [*found, self._scale()]

    def _scatter(self) -> tuple[float | None, float | None]:
        """Return the standard errors of single measurements, from the scatter of the window."""
        moments = self._pairs.moments()
        errors = [error * math.sqrt(moments.count) for error in moments.standard_errors()]
        trace, square = (error if math.isfinite(error) and moments.count > 2 else None for error in errors)
        return trace, square

    def _scale(self) -> Measurement:
        ratio = self._pairs.ratio()
        method = f"window_of_{ratio.count}"
        if ratio.determined and ratio.value > 0:
            return Measurement("noise_scale", ratio.value, stderr=ratio.stderr, method=method)
        value = ratio.value if math.isfinite(ratio.value) else None
        reason = f"|G|^2 is not resolved from zero over {ratio.count} measurements"
        if ratio.at_least > 0:
            reason += f"; the noise scale is at least {ratio.at_least:.3g}"
        return Measurement("noise_scale", value, status=Status.UNDETERMINED, reason=reason, method=method)


def _gradient(loss: PureLoss, batch: Any, draw: int) -> list[Tensor]:
    leaves = list(loss.leaves.values())
    found: list[Tensor | None] = list(torch.autograd.grad(loss(batch, draw=draw), leaves, allow_unused=True))
    dense = [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)]
    return [g if g.layout is torch.strided else g.to_dense() for g in dense]


def _same(held: Any, batch: Any) -> bool:
    """Tell whether two batches hold the same numbers: the whole data set, collated anew."""
    pairs = zip(tensors(held), tensors(batch), strict=False)
    compared = [torch.equal(a, b) for a, b in pairs if a.dim() > 0 or b.dim() > 0]
    return bool(compared) and all(compared)
