"""Who measures with this process: read off the model, as it was wrapped for training."""

import torch
import torch.distributed as dist
from torch import nn

from learnmech.probes.context import WAITS, waits_for_others
from learnmech.probes.distributed.fsdp import SHARDED, is_shard, is_sharded, mesh_of, reshard
from learnmech.probes.distributed.peers import Peers

ENDS_EARLY = (
    "Processes may run out of data one after the other (torch.distributed.algorithms.Join): one that has cannot "
    "measure with the others."
)


def peers_of(model: nn.Module) -> Peers | None:
    """Return the processes that train a model together; None for a model that this process has to itself.

    `DistributedDataParallel`: its process group. `fully_shard`: the mesh over which parameters are sharded (and
    replicated). A plain model is local, even where processes exist: nothing says that others hold the same one.

    Args:
        model: The model, as it is trained: with its wrapper.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return None
    first = next(model.parameters(), None)
    device = first.device if first is not None else torch.device("cpu")
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return peers_in(model.process_group, device)
    reshard(model)
    for parameter in model.parameters():
        if is_shard(parameter):
            mesh = mesh_of(parameter)
            if mesh.ndim == 1:
                return Peers(mesh.get_group(), _near(mesh.get_group(), device))
            return Peers(None, _near(None, device)) if mesh.size() == dist.get_world_size() else None
    return None


def companions(model: nn.Module) -> Peers | None:
    """Return the processes that train a model together if the first of all processes, which records, is among them."""
    peers = peers_of(model)
    if peers is None or waits_for_others(model):
        return None
    return peers if dist.get_process_group_ranks(peers.group or dist.group.WORLD)[0] == 0 else None


def may_end_early(model: nn.Module) -> bool:
    """Tell whether processes may run out of data one after the other (`model.join()`, `Join([model])`).

    One that has goes on in the collectives of gradients alone: any other would meet these there, and end the training.
    """
    return bool(getattr(getattr(model, "_join_config", None), "enable", False))


def why_not_alone(model: nn.Module) -> str:
    """Return why this process alone may not evaluate the loss: others would have to come along; '' if it may."""
    if waits_for_others(model):
        return WAITS
    return SHARDED if is_sharded(model) else ""


def peers_in(group: dist.ProcessGroup | None, device: torch.device) -> Peers | None:
    """Return the processes of a group; None if this one is alone in it."""
    if dist.get_world_size(group) == 1:
        return None
    return Peers(group, _near(group, device))


def _near(group: dist.ProcessGroup | None, device: torch.device) -> torch.device:
    """Return where a group exchanges numbers: on the model's device, unless its backend knows host memory only."""
    return torch.device("cpu") if dist.get_backend(group) in ("gloo", "mpi") else device
