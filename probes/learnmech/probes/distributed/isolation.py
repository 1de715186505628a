"""Isolation in several processes at once: each isolates its own part, and all of them fail or succeed together."""

from collections.abc import Callable
from typing import Any, TypeVar

from learnmech.probes.distributed.fsdp import is_sharded
from learnmech.probes.distributed.peers import Peers
from learnmech.probes.isolation import PureLoss, Source, isolated
from learnmech.probes.isolation.sharded import ShardedLoss, isolated_sharded

T = TypeVar("T")


class SharedLoss(PureLoss):
    """This process's loss on its own batch, beside those of the others.

    Attributes:
        peers: The processes.
    """

    def __init__(self, loss: PureLoss, peers: Peers) -> None:
        super().__init__(loss._source, loss.leaves, loss._journal, loss._streams)  # noqa: SLF001 (it becomes one)
        self.peers = peers


def isolated_together(
    source: Source, work: Callable[[Any], T], batch: Any = None, *, peers: Peers | None = None, twice: bool = True
) -> T:
    """Run a measurement on a loss in all processes that train its model, and leave the training exactly as it was.

    Args:
        source: Where the loss comes from.
        work: The measurement. It gets a `PureLoss` without peers, a `SharedLoss` where processes hold whole
            parameters, a `ShardedLoss` where they hold shards.
        batch: The batch of the training step, if there is one: it is watched for writes.
        peers: The processes, all of which call this alike; None: this one alone.
        twice: Use kernels that can be differentiated twice; see `isolated`. Sharded models always use training's own.

    Raises:
        Refusal: The model cannot be isolated in some process.
        PeerFailed: The measurement failed in some process.
    """  # noqa: DOC502 (raised below)
    if peers is None:
        return isolated(source, work, batch, twice=twice)
    with peers.together():
        if is_sharded(source.model):
            return isolated_sharded(source, lambda loss: work(_with(loss, peers)), batch)
        return isolated(source, lambda loss: work(SharedLoss(loss, peers)), batch, twice=twice)


def _with(loss: ShardedLoss, peers: Peers) -> ShardedLoss:
    loss.peers = peers
    return loss
