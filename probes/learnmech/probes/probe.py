"""What a probe is, and what it may see of the training."""

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from torch import Tensor, nn
from torch.optim import Optimizer

from learnmech.probes.isolation import PureLoss
from learnmech.probes.schedule import Schedule
from learnmech.wire import Measurement

T = TypeVar("T")


class Moment(enum.StrEnum):
    """When in a step a probe measures."""

    AT_REST = "at_rest"
    """Between updates: the weights w_t and a batch; recorded at step t."""
    UPDATE = "update"
    """Across an update: prepared at w_t with its gradient, measured at w_(t+1); recorded at step t."""
    UNSEEN = "unseen"
    """At weights w_t that have not seen the batch yet: at rest where the trainer tells the batch before it is used,
    across its update, at copies of w_t, where it is told afterwards; recorded at step t."""


class Isolate(Protocol):
    """Runs a measurement on a pure loss, with every side effect undone."""

    def __call__(self, work: Callable[[PureLoss], T], *, twice: bool = True) -> T:
        """Run `work`; see `learnmech.probes.isolation.isolated`.

        Args:
            work: The measurement.
            twice: Use kernels that differentiate twice; False: training's own.
        """
        ...


@dataclass(slots=True)
class TrainingView:
    """What a probe may see of the training at one moment. All of it is for reading only.

    Attributes:
        step: Optimizer updates done at the weights concerned: what the measurements will be recorded at.
        model: The model.
        optimizers: Its optimizers.
        parameters: The trainable parameters by name; a tied one once.
        batch: The batch about to be used (Lightning) or just used (Recorder).
        examples: How many examples it holds, where that can be told.
        used: True if the weights have just been updated with this batch, so that its noise is in them.
        update_examples: Examples of the whole update, in all micro-batches and processes, where they can be counted.
        micro_batches: How many micro-batches the update accumulated; `batch` is the last of them.
        isolate: Runs work on a pure loss of the model; the only way to evaluate it. After an update the model holds the
            new weights; `PureLoss.at` evaluates at others.
        complete: True if the parameters hold the complete gradient of the step.
        gradients: This gradient by name; None otherwise, or where it is sharded over processes.
        gradient_method: How the gradient was seen, if not before clipping.
        gradient_scale: What the gradient is still multiplied by (a loss scale not yet taken out).
        loss_scale: What the loss was multiplied by before the backward pass, where that is known.
        loss: The loss of the step as the trainer computed it.
        hyperparameters: Learning rate, weight decay, ... in force for each measured tensor, by its name.
        hold: Copies the weights (this process's part of them), by name; once for all probes that ask at this moment.
        defer: Takes tensors to read without waiting for the device, and a function from their elements to measurements.
        full_batch: 1.0 if every step sees the same whole training set, 0.0 if not, None if it is not known yet.
        dataset_size: Number of training examples, where known.
        precise: False where half-precision arithmetic is in the training step.
        may_replay: True if a test has shown that the loss of `batch` may be evaluated, whoever asked for that test.
        together: True if all processes that train the model measure now, each with its own batch.
        process: Number of this process among those that measure now, from 0.
        processes: How many they are.
        total: Adds up a vector over these processes, in place; all of them call it, in `measure`.
    """

    step: int
    model: nn.Module
    optimizers: Sequence[Optimizer]
    parameters: Mapping[str, Tensor]
    isolate: Isolate
    defer: Callable[[Sequence[Tensor], Callable[[list[float]], list[Measurement]]], None]
    hold: Callable[[], Mapping[str, Tensor]] = dict
    batch: Any = None
    examples: int | None = None
    used: bool = False
    update_examples: int | None = None
    micro_batches: int = 1
    complete: bool = False
    gradients: Mapping[str, Tensor] | None = None
    gradient_method: str = ""
    gradient_scale: Tensor | float = 1.0
    loss_scale: Tensor | float | None = None
    loss: Tensor | float | None = None
    hyperparameters: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    full_batch: float | None = None
    dataset_size: int | None = None
    precise: bool = True
    may_replay: bool = False
    together: bool = False
    process: int = 0
    processes: int = 1
    total: Callable[[Tensor], Tensor] = field(default=lambda vector: vector)


@runtime_checkable
class Probe(Protocol):
    """Measures something at its due steps. A probe of your own needs no more than this; `BaseProbe` has the defaults.

    Attributes:
        name: Identifies the probe in `probe_cost` and in events; unique among the probes of a run.
        schedule: When it is due; None leaves that to the budget.
    """

    name: str
    schedule: Schedule | None

    def measure(self, view: TrainingView) -> list[Measurement]:
        """Measure now."""
        ...


class BaseProbe:
    """Defaults for probes.

    Args:
        schedule: When to measure, such as `every(20)`; None leaves it to the budget.
        name: Name, if not the class's own: needed for two probes of one class.
    """

    default_name: ClassVar[str] = "probe"
    observables: ClassVar[tuple[str, ...]] = ()
    """What it measures: recorded with a status and a reason when it cannot be had."""
    moment: ClassVar[Moment] = Moment.AT_REST
    replays: ClassVar[bool] = False
    """True if it evaluates the loss, so that a training step that cannot be replayed rules it out."""
    collective: ClassVar[bool] = False
    """True if all processes that train the model can measure it together."""
    sums_shards: ClassVar[bool] = False
    """True if it is collective where parameters are sharded: every process has its part of each sum."""

    def __init__(self, schedule: Schedule | None = None, *, name: str | None = None) -> None:
        if schedule is not None and not isinstance(schedule, Schedule):
            raise TypeError(
                f"{type(self).__name__}(schedule={schedule!r}): expected every(n) from learnmech.probes, or None to "
                "let the budget decide"
            )
        self.schedule = schedule
        self.name = name or self.default_name

    def reset(self) -> None:
        """Forget earlier measurements: a new run begins."""

    def prepare(self, view: TrainingView) -> None:
        """Look at the weights and gradients before an update that will be measured (`Moment.UPDATE` only)."""

    def measure(self, view: TrainingView) -> list[Measurement]:
        """Measure now."""
        raise NotImplementedError(f"{type(self).__name__} does not define measure(view)")
