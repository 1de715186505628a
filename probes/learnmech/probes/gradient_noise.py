"""Gradient noise: |G|^2, tr Sigma and their ratio, from what an update consists of anyway, or from a batch cut up."""

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from learnmech.laws.batch_size import effective_learning_rate
from learnmech.probes.groups import scopes
from learnmech.probes.isolation import Refusal, Skip
from learnmech.probes.noise.examples import LiveExamples
from learnmech.probes.noise.live import LivePieces, Units
from learnmech.probes.noise.scale import HALF_LIFE, NoiseTracker
from learnmech.probes.noise.split import Split, SplitBatches
from learnmech.probes.probe import BaseProbe, Moment, TrainingView
from learnmech.probes.schedule import Schedule
from learnmech.wire import Measurement

if TYPE_CHECKING:
    from collections.abc import Mapping

SOURCES = ("auto", "pieces", "examples", "split")

PATIENCE = 3
"""Updates in a row from whose pieces nothing could be made, after which that is given up."""


class GradientNoiseScale(BaseProbe):
    """Measures `noise_trace`, `grad_sq_norm`, `noise_scale`, `signal_to_noise`, and what follows from them.

    The cheapest source that the run has, named in `method`:

    - `ranks`, `micro_batches`: an update is a mean over processes (data parallelism, `fully_shard`) and micro-batches
      (gradient accumulation). Hooks take the squared norm of what each of them adds to the gradient, in training's own
      backward passes: nothing is evaluated. Measured before averaging, clipping and the optimizer; a loss scale is
      taken out. What was seen is compared with the gradient, and void where it does not add up to it.
    - `examples`: the squared norm of every example's gradient, exactly, from hooks on layers in training's own backward
      pass: half a step, for linear layers, convolutions, embeddings, norms and attention (see
      `learnmech.probes.noise.per_example`). For one batch in one process, if asked for by `source="examples"`.
    - `split_batch`: where an update is one batch in one process, this is cut into four pieces, whose gradients are
      computed once more. Two batches at the same weights also give `noise_trace_between`, which equals `noise_trace` if
      the noise of a batch falls as 1/B. Costs two gradients of a batch.

    Estimates are unbiased, |G|^2 may come out negative, and nothing is clamped. Dropout draws other masks for each
    piece, so its noise counts as part of Sigma. `noise_scale` is a ratio of means over an exponential window, never a
    mean of ratios; it is `undetermined` while its 95 % interval spans more than a factor of four.

    Args:
        schedule: When to measure, such as `every(20)`; None leaves it to the budget.
        source: `auto`; `pieces` for processes and micro-batches alone; `examples`; `split` for cutting batches.
        half_life: Measurements after which one counts half in the window.
        per_layer: Whether to measure module types and blocks too, or only the whole model.
        units: Tells how many units the loss of a batch is a mean over, such as `lambda batch: (batch["labels"] !=
            -100).sum()` for tokens; None: its examples. Noise is told per example all the same.
        weighted: True if the training weighs micro-batches and processes by their units; False if all count alike, as
            under Lightning and `DistributedDataParallel`.
        split: `split(batch, pieces)` returns a list of smaller batches, where batches cannot be cut along the first
            dimension of all their tensors.
        name: Name, if there are two probes of this class.

    References:
        McCandlish et al. 2018, arXiv 1812.06162, appendix A.1; interval of the ratio: Fieller 1954.
    """

    default_name: ClassVar[str] = "gradient_noise_scale"
    observables: ClassVar[tuple[str, ...]] = ("noise_trace", "grad_sq_norm", "noise_scale")

    def __init__(
        self,
        schedule: Schedule | None = None,
        *,
        source: str = "auto",
        half_life: float = HALF_LIFE,
        per_layer: bool = True,
        units: Units | None = None,
        weighted: bool = False,
        split: Split | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(schedule, name=name)
        if source not in SOURCES:
            raise ValueError(f"GradientNoiseScale(source={source!r}): expected one of {', '.join(map(repr, SOURCES))}")
        if source == "examples" and (units is not None or weighted):
            raise ValueError(
                'GradientNoiseScale(source="examples") takes examples that weigh alike; units= and weighted= go with '
                'source="pieces"'
            )
        for argument, value in (("units", units), ("split", split)):
            if value is not None and not callable(value):
                raise TypeError(f"GradientNoiseScale({argument}={value!r}): expected a function of a batch, or None")
        self.source = source
        self.half_life = half_life
        self.per_layer = per_layer
        self.units = units
        self.weighted = weighted
        self.split = split
        self._pieces, self._processes = 1, 1
        self._tracker = NoiseTracker(half_life)
        self.reset()

    def reset(self) -> None:
        """Forget the window, held batches and weights of an earlier run."""
        self._tracker.reset()
        self._batches = SplitBatches(self.split)
        self._live: LivePieces | None = None
        self._held: Mapping[str, Tensor] = {}
        self._failures = 0
        self._uses = 0
        self._given_up = ""
        self._told = ""

    def __getstate__(self) -> dict[str, Any]:
        """Leave hooks and held weights out of copies and pickles."""
        return self.__dict__ | {"_live": None, "_held": {}}

    def expect(self, micro_batches: int, processes: int) -> None:
        """Learn what an update consists of; called before the first step, and when it changes.

        Args:
            micro_batches: Backward passes of each process.
            processes: Processes that measure together.
        """
        self._pieces, self._processes = micro_batches * processes, processes

    @property
    def live(self) -> bool:
        """Whether it measures on the pieces of updates."""
        return self.source in ("pieces", "examples") or (
            self.source == "auto" and self._pieces > 1 and not self._given_up
        )

    @property
    def watches(self) -> bool:
        """Whether it watches the backward passes."""
        return self.live

    @property
    def moment(self) -> Moment:  # type: ignore[override] # follows from the source
        """When it measures."""
        return Moment.UPDATE if self.live else Moment.UNSEEN

    @property
    def replays(self) -> bool:  # type: ignore[override] # follows from the source
        """Whether it evaluates the loss."""
        return not self.live

    @property
    def collective(self) -> bool:  # type: ignore[override] # follows from the source
        """Whether all processes measure it together."""
        return self.live and self._processes > 1

    def arm(self, view: TrainingView) -> None:
        """Watch the backward passes of the update that comes next."""
        self.disarm()
        if self.source == "examples":
            if view.examples:  # as many as in the update before
                self._live = LiveExamples(view, batch_size=view.examples, uses=self._uses, per_layer=self.per_layer)
        elif self.live:
            self._live = LivePieces(
                view,
                expected=self._pieces // self._processes,
                units=self.units,
                weighted=self.weighted,
                per_layer=self.per_layer,
            )

    def disarm(self) -> None:
        """Let go of hooks and of held weights."""
        if self._live is not None:
            self._live.close()
        self._live, self._held = None, {}

    def next_piece(self, batch: Any, examples: int | None) -> None:
        """Take note that the backward pass of a micro-batch has ended."""
        if self._live is not None:
            self._live.next_piece(batch, examples)

    def prepare(self, view: TrainingView) -> None:
        """Look at the complete gradient, or hold the weights that have not seen the batch."""
        if self._live is not None and view.complete:
            self._live.look(view)
        elif not self.live:
            self._held = view.hold()

    def measure(self, view: TrainingView) -> list[Measurement]:
        """Measure the update of `view`, or on its batch.

        Raises:
            Refusal: There is no way to measure it in this run.
            Skip: Nothing can be said of this update or batch.
        """  # noqa: DOC502 (Skip is raised below)
        try:
            return self._of_pieces(view) if self.live else self._of_batch(view)
        finally:
            self.disarm()

    def notice(self) -> str:
        """Return why a cheaper source was given up, once."""
        earlier, self._told = self._told, self._given_up
        return self._told if self._told != earlier else ""

    def _of_pieces(self, view: TrainingView) -> list[Measurement]:
        live = self._live
        if live is None:
            raise Skip("the backward passes of this update were not watched")
        if view.complete:
            live.look(view)  # nothing told that the update was about to be made
        try:
            tally = live.tally(view)
        except Skip as skip:
            self._failed(str(skip))
            raise
        self._failures = 0
        self._uses += 1
        method = "examples" if self.source == "examples" else _method(view)
        precise, population = view.precise, view.dataset_size
        rate, size = _effective_learning_rate(view), view.update_examples

        def build(numbers: list[float]) -> list[Measurement]:
            parts = live.parts(tally, numbers, precise=precise, population=population)
            return self._tracker.update(
                parts, method=method, batch_size=size, effective_learning_rate=rate, population=population
            )

        view.defer([view.total(tally.row), *live.doubts], build)
        return []

    def _failed(self, why: str) -> None:
        """Count an update from whose pieces nothing could be made; give up after some in a row."""
        self._failures += 1
        if self._failures < PATIENCE:
            return
        if self.source != "auto" or self._processes > 1:
            raise Refusal(f"The noise cannot be told from the pieces of updates: {why}.")
        self._given_up = f"the pieces of updates do not tell: {why}; batches are cut instead"

    def _of_batch(self, view: TrainingView) -> list[Measurement]:
        members = scopes(view.model, view.parameters)
        if not self.per_layer:
            members = {"": members[""]}
        parts, between, pieces = self._batches.measure(view, self._held, members)
        found = self._tracker.update(
            parts,
            method=f"split_batch_in_{pieces}",
            batch_size=view.update_examples,
            effective_learning_rate=_effective_learning_rate(view),
            population=view.dataset_size,
        )
        if between is not None:
            found.append(Measurement("noise_trace_between", between, method="two_batches"))
        return found


def _method(view: TrainingView) -> str:
    if view.processes == 1:
        return "micro_batches"
    return "ranks" if view.micro_batches == 1 else "ranks_and_micro_batches"


def _effective_learning_rate(view: TrainingView) -> float | None:
    """Return eta (1 - tau) / (1 - mu) if all parameters are trained by noisy SGD with one value; None if not."""
    if view.full_batch or not all(isinstance(optimizer, torch.optim.SGD) for optimizer in view.optimizers):
        return None
    groups = [group for optimizer in view.optimizers for group in optimizer.param_groups if group["params"]]
    if any(isinstance(group["lr"], Tensor) for group in groups):
        return None  # it is on the device: to read it would wait
    if any(not 0.0 <= group["momentum"] < 1.0 for group in groups):
        return None  # the sum of past gradients has no end
    rates = {effective_learning_rate(group["lr"], group["momentum"], group["dampening"]) for group in groups}
    return rates.pop() if len(rates) == 1 and all(map(math.isfinite, rates)) else None
