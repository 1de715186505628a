"""Gradient noise: |G|^2, tr Sigma and their ratio, from what an update consists of anyway, or from a batch cut up."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from learnmech.probes.groups import LIMIT
from learnmech.probes.isolation import Skip
from learnmech.probes.noise.additive import Additive
from learnmech.probes.noise.choice import Choice, check_arguments
from learnmech.probes.noise.division import Division
from learnmech.probes.noise.examples import LiveExamples
from learnmech.probes.noise.live import LivePieces, method_of
from learnmech.probes.noise.norm_proxy import NORMS, LiveNorms, NormProxy, only_norms
from learnmech.probes.noise.rate import rate_of
from learnmech.probes.noise.scale import HALF_LIFE, NoiseTracker
from learnmech.probes.noise.split import Split, SplitBatches
from learnmech.probes.noise.units import Units
from learnmech.probes.pieces import split as cut
from learnmech.probes.probe import BaseProbe, Moment, TrainingView
from learnmech.probes.schedule import Schedule
from learnmech.wire import Measurement

if TYPE_CHECKING:
    from torch import Tensor

MODEST = 0.2
"""Share of the budget that it takes at most where the pieces of updates tell: 0.2 % of the time by default."""


class GradientNoiseScale(BaseProbe):
    """Measures `noise_trace`, `grad_sq_norm`, `noise_scale`, `signal_to_noise`, and what follows from them.

    The cheapest source that the run has, named in `method`:

    - `ranks`, `micro_batches`: an update is a mean over processes (data parallelism, `fully_shard`) and micro-batches
      (gradient accumulation). Hooks take the squared norm of what each of them adds to the gradient, in training's own
      backward passes: nothing is evaluated. Before averaging and clipping; a loss scale is taken out. Void where what
      was seen does not add up to the gradient, and given up after three in a row.
    - `examples`: the squared norm of every example's gradient, exactly, from hooks on layers in training's own backward
      pass: 0.65 of a step (see `learnmech.probes.noise.per_example`). Taken where an update is one batch in one
      process, every parameter is covered, nothing is compiled, and the gradient of a batch is found to be the mean of
      those of its examples whenever one is cut: a mean over tokens is not, and takes `units`.
    - `split_batch`: the batch is cut into four pieces, whose gradients are computed once more: two gradients of a
      batch, for which the device is waited for. Two batches at the same weights also give `noise_trace_between`, equal
      to `noise_trace` if noise falls as 1/B: each eighth measurement is made so where examples are taken.
    - `layer_norm_examples`, only if asked for by `source="norm_layers"`: that of norm layers alone, times a factor
      fitted to every fourth measurement, which is exact. A proxy: see `learnmech.probes.noise.norm_proxy`.

    Estimates are unbiased, and |G|^2 may come out negative: nothing is clamped. The noise of dropout is part of Sigma.
    `noise_scale` is a ratio of means over an exponential window; `undetermined` while its 95 % interval spans more than
    a factor of four.

    Points per measurement: 4 for each scope, 1 for the whole model, and 1 more under SGD: 46 for a transformer of two
    blocks under SGD, 86 for one of twelve, (1 + 64 + 64) 4 + 2 = 518 for any model; `per_parameter` adds 4 a tensor.

    Args:
        schedule: When to measure, such as `every(20)`; None leaves it to the budget.
        source: `auto`; `pieces` for processes and micro-batches alone; `examples`, of one batch or of all micro-
            batches; `norm_layers`; `split` for cutting batches.
        half_life: Measurements after which one counts half in the window.
        per_layer: Whether to measure module types and blocks too, or only the whole model.
        units: Tells how many units the loss of a batch, or of a piece of it, is a mean over, such as `lambda batch:
            (batch["labels"] != -100).sum()`; None: its examples. Noise is told per example all the same.
        weighted: True if the training weighs micro-batches and processes by their units; False if all count alike, as
            under Lightning and `DistributedDataParallel`. Their contributions must not contradict it.
        split: `split(batch, pieces)` returns a list of smaller batches, where batches cannot be cut along the first
            dimension of all their tensors; `auto` takes no single examples then.
        per_parameter: Whether every tensor is a scope too, by its name.
        parameter_groups: Whether every parameter group of the optimizers is a scope too, `group:0`, ...
        limit: Scopes by type at most, and scopes by depth at most.
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
        per_parameter: bool = False,
        parameter_groups: bool = False,
        limit: int = LIMIT,
        name: str | None = None,
    ) -> None:
        super().__init__(schedule, name=name)
        check_arguments(source, units=units, split=split)
        self.source = source
        self.half_life = half_life
        self.division = Division(per_layer, per_parameter, parameter_groups, limit)
        self.units = units
        self.weighted = weighted
        self.split = split
        given = "units=" if units is not None else "split=" if split is not None else ""
        self._choice = Choice(source, f"{given} says that a batch is no row of examples" if given else "")
        self._passes = 1
        self._tracker = NoiseTracker(half_life)
        self._proxy = NormProxy()
        self.reset()

    def reset(self) -> None:
        """Forget the window, held batches and weights of an earlier run."""
        self._tracker.reset()
        self._proxy.reset()
        self._choice.reset()
        self._batches = SplitBatches(self.split, self.units)
        self._live: LivePieces | None = None
        self._held: Mapping[str, Tensor] = {}
        self._sizes: list[int | None] = []
        self._told: list[int | None] = []
        self._cut_at = -1
        self._unscaled = False

    def __getstate__(self) -> dict[str, Any]:
        """Leave hooks and held weights out of copies and pickles."""
        return self.__dict__ | {"_live": None, "_held": {}}

    def expect(self, micro_batches: int, processes: int) -> None:
        """Learn what an update consists of; called before the first step, and when it changes.

        Args:
            micro_batches: Backward passes of each process.
            processes: Processes that measure together.
        """
        self._passes = micro_batches
        self._unscaled = False  # gradients may be divided by how many there are
        self._choice.expect(micro_batches * processes, processes)

    def refuse_replays(self, reason: str) -> None:
        """Learn that the loss cannot be evaluated in this run, and measure without it if that is possible."""
        self._choice.refuse_replays(reason)

    @property
    def watches(self) -> bool:
        """Whether it measures on the backward passes of updates."""
        return self._choice.now != "split"

    @property
    def watched(self) -> float:
        """Seconds of host time that its hooks have taken since it was told to watch; zero once it has measured."""
        return 0.0 if self._live is None else self._live.seconds

    @property
    def moment(self) -> Moment:  # type: ignore[override] # follows from the source
        """When it measures."""
        return Moment.UPDATE if self.watches else Moment.UNSEEN

    @property
    def replays(self) -> bool:  # type: ignore[override] # follows from the source
        """Whether it evaluates the loss."""
        return not self.watches

    @property
    def collective(self) -> bool:  # type: ignore[override] # follows from the source
        """Whether all processes measure it together."""
        return self.watches and self._choice.processes > 1

    @property
    def appetite(self) -> float:
        """Share of the budget that it takes at most."""
        return MODEST if self._choice.now == "pieces" else 1.0

    def arm(self, view: TrainingView) -> None:
        """Watch the backward passes of the update that comes next.

        Raises:
            Skip: It will not be measured from this update's own passes.
            Refusal: There is no way to measure it in this run.
        """  # noqa: DOC502 (Refusal is raised by Choice)
        self.disarm()
        self._told = []
        if view.step == self._cut_at:
            raise Skip("this step was measured before its update")
        self._choice.settle()
        self._choice.check()
        if (source := self._choice.now) == "split":
            raise Skip("batches are cut from now on")
        if source == "pieces":
            self._live = LivePieces(
                view, expected=self._passes, members=self._members(view), units=self.units, weighted=self.weighted
            )
            return
        if self._choice.undecided and not self._choice.inspect(view.model):
            raise Skip("single examples do not tell")
        told = self._sizes if len(self._sizes) == self._passes else [view.examples] * self._passes
        sizes, uses = [size for size in told if size], self._choice.confirmed
        if len(sizes) < self._passes:
            self._choice.untold()
        if source == "norm_layers":
            self._live = LiveNorms(view, sizes=sizes, uses=uses)
        else:
            found = self._members(view)
            self._live = LiveExamples(view, sizes=sizes, members=found, uses=uses, weighted=self.weighted)

    def disarm(self) -> None:
        """Let go of hooks and of held weights."""
        if self._live is not None:
            self._live.close()
        self._live, self._held = None, {}

    def next_piece(self, batch: Any, examples: int | None) -> None:
        """Take note that the backward pass of a micro-batch has ended."""
        self._told.append(examples)
        if self._live is not None:
            self._live.next_piece(batch, examples)

    def prepare(self, view: TrainingView) -> None:
        """Look at the complete gradient, or hold the weights that have not seen the batch."""
        if self._live is not None and view.complete:
            self._live.look(view)
        elif not self.watches:
            self._held = view.hold()

    def measure(self, view: TrainingView) -> list[Measurement]:
        """Measure the update of `view`, or on its batch.

        Raises:
            Refusal: There is no way to measure it in this run.
            Skip: Nothing can be said of this update or batch.
        """  # noqa: DOC502 (Skip is raised below)
        try:
            self._choice.check()
            return self._of_pieces(view) if self.watches else self._of_batch(view)
        finally:
            self._sizes = self._told if all(self._told) else self._sizes  # batches after an empty one are as before
            self.disarm()

    def notice(self) -> str:
        """Return why a cheaper source was given up, once."""
        return self._choice.notice()

    def _members(self, view: TrainingView) -> Mapping[str, list[str]]:
        """Return the scopes, and the parameters in each."""
        norms = {NORMS: list(only_norms(view))} if self.source == "norm_layers" else {}
        return self.division.members(view) | norms

    def _of_pieces(self, view: TrainingView) -> list[Measurement]:
        live, source = self._live, self._choice.now
        if live is None:
            raise Skip("the backward passes of this update were not watched")
        if view.complete:
            live.look(view)  # nothing told that the update was about to be made
        try:
            tally = live.tally(view)
        except Skip as skip:
            self._choice.failed(str(skip), passing=not live.trouble)
            raise
        if self._choice.undecided:
            cut(view.batch, 2)  # the loss cannot be tested: the batch must at least look like examples
        self._choice.made()
        method = method_of(view) if source == "pieces" else "examples"
        step, precise, population, size = view.step, view.precise, view.dataset_size, view.update_examples
        rate = rate_of(view)

        def build(numbers: list[float]) -> list[Measurement]:
            live.unscaled = self._unscaled
            parts = dict(live.parts(tally, numbers, precise=precise, population=population))
            self._unscaled = live.unscaled
            self._choice.judged(live.void)
            if isinstance(live, LiveNorms):
                moments = self._tracker.window().moments()
                return self._proxy.measurements(step, parts[""], live.grad_sq_norm, moments, population)
            if NORMS in parts:
                self._proxy.fit(step, parts[""], parts.pop(NORMS))
            return self._tracker.update(
                parts, method=method, batch_size=size, effective_learning_rate=rate, population=population
            )

        view.defer([view.total(tally.row), *live.doubts], build)
        return []

    def _of_batch(self, view: TrainingView) -> list[Measurement]:
        doubtful = self._choice.doubtful and self._choice.inspect(view.model)
        of_batch = self._batches.measure(view, self._held, self._members(view), compare=doubtful)
        parts = of_batch.parts
        if of_batch.additive is Additive.NO:
            self._tracker.reset()  # single examples were taken for what they are not
        self._choice.compared(of_batch.additive)
        self._cut_at = view.step
        if NORMS in parts:
            self._proxy.fit(view.step, parts[""], parts.pop(NORMS))
        found = self._tracker.update(
            parts,
            method=f"split_batch_in_{of_batch.pieces}",
            batch_size=view.update_examples,
            effective_learning_rate=rate_of(view),
            population=view.dataset_size,
        )
        if of_batch.between is not None:
            found.append(Measurement("noise_trace_between", of_batch.between, method="two_batches"))
        return found
