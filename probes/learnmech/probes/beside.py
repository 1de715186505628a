"""A process beside the one that records: it takes part in what all processes measure together, and keeps nothing."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from learnmech.probes.agenda import collective, replays
from learnmech.probes.distributed import Peers, is_sharded
from learnmech.probes.engine import Engine
from learnmech.probes.probe import Probe
from learnmech.probes.writer import Nowhere, Writer


def engine_beside(
    model: nn.Module, optimizers: Sequence[Optimizer], probes: Sequence[Probe], peers: Peers | None, **settings: Any
) -> Engine | None:
    """Return the engine of a process that does not record; None if nothing is measured together.

    Args:
        model: The model.
        optimizers: Its optimizers.
        probes: The probes of the run.
        peers: The processes that train the model together; None: there are no others.
        settings: Settings of the engine.
    """
    if peers is None:
        return None
    evaluates = settings.get("shares_loss", True)
    sharded = is_sharded(model)
    shared = [probe for probe in probes if collective(probe, sharded=sharded) and (evaluates or not replays(probe))]
    engine = Engine(model, optimizers, shared, Writer(Nowhere()), **settings)
    return engine if engine.join(peers) else None
