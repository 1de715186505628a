"""The isolated replay: a pure loss, differentiable twice, with every side effect undone afterwards."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from learnmech.probes import deadline
from learnmech.probes.isolation.batch import clone
from learnmech.probes.isolation.contexts import twice_differentiable
from learnmech.probes.isolation.journal import Journal
from learnmech.probes.isolation.leaves import StandIns
from learnmech.probes.isolation.refusal import Refusal
from learnmech.probes.isolation.rng import Streams, preserved
from learnmech.probes.isolation.settings import optimizers_at_rest
from learnmech.probes.isolation.silence import REMEDY
from learnmech.probes.isolation.source import Source, devices
from learnmech.probes.isolation.untouched import untouched

logger = logging.getLogger("learnmech.probes")

T = TypeVar("T")


class PureLoss:
    """The loss as a pure function of fresh leaves and a batch, valid inside `isolated` only.

    Every call starts from the state of the model, of its Python attributes and of the random streams at the beginning
    of the measurement, so calls do not see one another.

    Attributes:
        leaves: One fresh leaf for each trainable parameter, by name: differentiate with respect to these.
    """

    def __init__(self, source: Source, leaves: dict[str, Tensor], journal: Journal, streams: Streams) -> None:
        self.leaves = leaves
        self._source = source
        self._journal = journal
        self._streams = streams
        self._own = True  # no loss was evaluated at other parameters since the model last held the leaves

    def __call__(self, batch: Any, *, draw: int = 0) -> Tensor:
        """Compute the loss of `batch`, a scalar with a graph to the leaves.

        Args:
            batch: A batch as the training sees it; it is copied.
            draw: Which randomness: 0 is what the training itself would draw next, any other number a fixed other draw.

        Raises:
            Refusal: The loss does not depend on any trainable parameter.
        """
        deadline.check()
        self._streams.draw(draw)
        twins = self._journal.rewind()
        with optimizers_at_rest({*self._source.optimizers, *self._journal.optimizers}, twins):
            loss = self._source.evaluate(clone(batch))
        if torch.is_grad_enabled() and not loss.requires_grad:
            raise Refusal("The loss does not depend differentiably on any trainable parameter.", REMEDY)
        return loss

    def at(self, parameters: Sequence[Tensor], work: Callable[[], T]) -> T:
        """Run `work` while losses are evaluated at other parameters than the leaves.

        Args:
            parameters: One tensor for each leaf, in the order of `leaves`.
            work: What to run; it may call this loss.
        """
        own = all(given is leaf for given, leaf in zip(parameters, self.leaves.values(), strict=True))
        with self._journal.standing_in(dict(zip(map(id, self.leaves.values()), parameters, strict=True))):
            # `work` may differentiate a graph from before: checkpoints in it run modules again, at these parameters
            if not (own and self._own):
                self._own = False
                self._journal.rewind()
                self._own = own
            return work()


class _Inside(nn.Module):
    """A module whose forward runs any function: `functional_call` keeps its swap up for a whole measurement then."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[], Any]) -> Any:
        """Run `work`."""
        return work()


def isolated(source: Source, work: Callable[[PureLoss], T], batch: Any = None, *, twice: bool = True) -> T:
    """Run a measurement on a pure loss, and leave the training exactly as it was.

    The whole of `work`, backward passes included, runs while the model holds stand-ins: activation checkpointing
    computes the forward pass again during the backward pass, and must not meet the real buffers then.

    Args:
        source: Where the loss comes from.
        work: The measurement: gets the pure loss, returns numbers or tensors of its own.
        batch: The batch of the training step, if there is one: it is watched for writes.
        twice: Use kernels that can be differentiated twice. False: training's own, flash attention and compiled graphs
            included, for measurements that need first derivatives only; a graph is compiled once more then,
            for the stand-ins.

    Raises:
        Refusal: The model cannot be isolated, or something was written to that belongs to the training.
    """  # noqa: DOC502 (raised by untouched)
    model = source.model
    with untouched(source, batch) as stack:
        stack.enter_context(twice_differentiable(model.modules()) if twice else _differentiable())
        stack.enter_context(_checkpoints_in_the_graph())
        source.enter(stack)
        return _swapped(source, work, StandIns(model, source.optimizers))


@contextmanager
def _differentiable() -> Iterator[None]:
    with torch.inference_mode(mode=False), torch.enable_grad():
        yield


class _InTheGraph:
    """Stands in for reentrant activation checkpointing, with the same numbers and memory.

    The reentrant kind runs a backward pass of its own inside the backward pass: it refuses `torch.autograd.grad`, and
    has no second derivative.
    """

    @staticmethod
    def apply(function: Callable[..., Any], preserve_rng_state: bool, *arguments: Any) -> Any:
        """Run the function, to be computed again in the backward pass."""
        if not any(isinstance(a, Tensor) and a.requires_grad for a in arguments):
            with torch.no_grad():  # as the reentrant kind does: it passes no gradient to the parameters inside then
                return function(*arguments)
        return checkpoint.checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=preserve_rng_state)


@contextmanager
def _checkpoints_in_the_graph() -> Iterator[None]:
    kept = checkpoint.CheckpointFunction
    checkpoint.CheckpointFunction = _InTheGraph  # type: ignore[assignment,misc]  # what `checkpoint` looks up
    try:
        yield
    finally:
        checkpoint.CheckpointFunction = kept  # type: ignore[misc]


def _swapped(source: Source, work: Callable[[PureLoss], T], swap: StandIns) -> T:
    def measure() -> T:
        journal = Journal(source.model, swap.twins)
        try:
            with preserved(devices(source.model), journal.generators) as streams:
                return work(PureLoss(source, swap.leaves, journal, streams))
        finally:
            journal.restore()

    tensors = {f"model.{name}": tensor for name, tensor in swap.tensors.items()}
    result: T = torch.func.functional_call(_Inside(source.model), tensors, (measure,), strict=False)
    return result
