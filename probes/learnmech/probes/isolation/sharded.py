"""Isolation of a model whose parameters are divided among processes: the shards themselves move, and return.

`fully_shard` gathers parameters by hooks of the module, which know their own tensors only: `functional_call` cannot put
others in, and a gradient taken inside has no graph. What is left is training's own way: write other numbers
into this process's shards, run forward and backward passes, read `.grad`, and put the very bits back. Everything
else is isolated as it is for whole parameters.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter  # no public name

from learnmech.probes.distributed.fsdp import check_layout, check_sharded, clean_up, groups, local, mesh_of, reshard
from learnmech.probes.distributed.peers import Peers, Step
from learnmech.probes.isolation.batch import clone
from learnmech.probes.isolation.journal import Journal
from learnmech.probes.isolation.leaves import Copies
from learnmech.probes.isolation.refusal import Refusal
from learnmech.probes.isolation.rng import Streams, preserved
from learnmech.probes.isolation.settings import optimizers_at_rest
from learnmech.probes.isolation.source import Source, devices, optimized
from learnmech.probes.isolation.untouched import untouched

T = TypeVar("T")


class ShardedLoss:
    """The loss of a sharded model, at its weights or at others, valid inside `isolated_sharded` only.

    Every call starts from the state of the model, of its Python attributes and of the random streams at the beginning
    of the measurement.

    Attributes:
        shards: A copy of this process's shard of each trainable parameter, by name.
        parameters: The parameters themselves, by name.
        peers: The processes that hold the other shards.
        copies: How many processes hold the same shard (hybrid sharding).
        part: Which shard this process holds.
        resolution: Relative spacing of the coarsest type that the model computes with.
    """

    peers: Peers

    def __init__(self, source: Source, parameters: dict[str, nn.Parameter], journal: Journal, streams: Streams) -> None:
        self.parameters = parameters
        self._held = [local(parameter) for parameter in parameters.values()]
        with torch.no_grad():
            self.shards = {name: shard.clone() for name, shard in zip(parameters, self._held, strict=True)}
        mesh = mesh_of(next(iter(parameters.values())))
        self.copies = mesh.size(0) if mesh.ndim == 2 else 1
        self.part = mesh.get_local_rank(mesh.ndim - 1)
        types = [getattr(getattr(group, "mp_policy", None), "param_dtype", None) for group in groups(source.model)]
        self.resolution = max([torch.finfo(dtype).eps for dtype in types if dtype is not None], default=0.0)
        self._source = source
        self._journal = journal
        self._streams = streams

    @property
    def leaves(self) -> dict[str, Tensor]:
        """Refuse: nothing can be differentiated with respect to shards.

        Raises:
            Refusal: Always.
        """
        raise Refusal("Parameters are sharded over processes, and this measurement needs them whole.")

    def __call__(self, batch: Any, *, draw: int = 0) -> Tensor:
        """Compute this process's loss of its batch, a scalar; forward passes of all processes belong together.

        Args:
            batch: A batch as the training sees it; it is copied.
            draw: Which randomness: 0 is what the training itself would draw next, any other number a fixed other draw.

        Raises:
            PeerFailed: It failed in some process, before the pass or after it.
        """  # noqa: DOC502 (raised by the peers)
        self.peers.say(Step.PASS)
        return self.peers.attempt(lambda: self._evaluated(batch, draw), Step.PASS)

    def _evaluated(self, batch: Any, draw: int) -> Tensor:
        reshard(self._source.model)  # parameters gathered at other weights, and left so, would be taken for these
        self._streams.draw(draw)
        twins = self._journal.rewind()
        with optimizers_at_rest({*self._source.optimizers, *self._journal.optimizers}, twins):
            return self._source.evaluate(clone(batch))

    def at(self, shards: Sequence[Tensor], work: Callable[[], T]) -> T:
        """Run `work` while the model holds other weights.

        Args:
            shards: This process's shards of them, in the order of `shards`.
            work: What to run; it may call this loss.
        """
        try:
            _write(self._held, shards)
            return work()
        finally:
            _write(self._held, self.shards.values())
            reshard(self._source.model)

    def gradients(self, work: Callable[[], T]) -> tuple[T, list[Tensor | None]]:
        """Run `work`, which calls `backward`; return the gradient that it leaves, in the order of `shards`."""
        for parameter in self.parameters.values():
            parameter.grad = None
        try:
            result = work()
            found = [parameter.grad for parameter in self.parameters.values()]
            return result, [None if grad is None else local(grad) for grad in found]
        finally:
            for parameter in self.parameters.values():
                parameter.grad = None


def _write(shards: Sequence[Tensor], values: Iterable[Tensor]) -> None:
    """Overwrite shards; their version counters stay, since they will hold their own bits again."""
    with torch.no_grad(), _unsafe_preserve_version_counter(tuple(shards)):
        for shard, value in zip(shards, values, strict=True):
            shard.copy_(value)


def isolated_sharded(source: Source, work: Callable[[ShardedLoss], T], batch: Any = None) -> T:
    """Run a measurement on the loss of a sharded model in all its processes, and leave the training exactly as it was.

    Args:
        source: Where the loss comes from.
        work: The measurement: gets a `ShardedLoss`, returns numbers or tensors of its own.
        batch: The batch of the training step, if there is one: it is watched for writes.

    Raises:
        Refusal: The model cannot be isolated, or something was written to that belongs to the training.
    """
    model = source.model
    check_sharded(model)
    trainable = optimized(model, source.optimizers)
    if not trainable:
        raise Refusal("The model has no trainable parameter.", "Set requires_grad on the parameters that are trained.")
    for name, parameter in trainable.items():
        check_layout(name, parameter)
    reshard(model)
    with untouched(source, batch) as stack:
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.enable_grad())
        source.enter(stack)
        stack.enter_context(_cleaned(model))
        return _measured(source, work, trainable)


def _measured(source: Source, work: Callable[[ShardedLoss], T], trainable: dict[str, nn.Parameter]) -> T:
    model = source.model
    buffers = Copies(dict(model.named_buffers()))
    own = {id(parameter): parameter for parameter in model.parameters()}  # parameters stand for themselves
    journal = Journal(model, lambda: own | buffers.twins())
    try:
        with preserved(devices(model), journal.generators) as streams:
            return work(ShardedLoss(source, trainable, journal, streams))
    finally:
        reshard(model)  # first: the journal puts sharded parameters back where gathered ones may be
        journal.restore()


@contextmanager
def _cleaned(model: nn.Module) -> Iterator[None]:
    """Bring `fully_shard` back to rest if a pass through the model broke off."""
    try:
        yield
    except Exception:
        clean_up(model)
        raise
