"""Whose part of a tensor counts in a sum over processes, so that what several of them hold is counted once."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from learnmech.probes.distributed.fsdp import is_shard, mesh_of
from learnmech.probes.isolation.refusal import Refusal

_SHARDS = ("Shard", "_StridedShard")
"""Layouts in which every number is in one process; the second is that of `fully_shard` over tensor parallelism."""


def surplus(parameters: Mapping[str, Tensor], process: int, processes: int) -> list[str]:
    """Name the parameters whose part in this process is counted in another one.

    Whole parameters count in the first process. A DTensor counts where the process is the first along each dimension
    of the mesh in which it is replicated (`fully_shard` over replicas, HSDP), and everywhere if there is none.

    Args:
        parameters: Parameters by name.
        process: Number of this process among those that add up.
        processes: How many they are.

    Raises:
        Refusal: A parameter is laid out over other processes, or in a way that we do not know.
    """
    members: list[int] | None = None
    found = []
    for name, parameter in parameters.items():
        if not is_shard(parameter):
            if process > 0:
                found.append(name)
            continue
        mesh, kinds = mesh_of(parameter), _placements(parameter)
        ranks: list[int] = sorted(torch.as_tensor(mesh.mesh).flatten().tolist())
        members = members or ranks
        if len(ranks) != processes or ranks != members:
            raise Refusal(
                f"Parameter {name} is laid out over {len(ranks)} processes, and {processes} measure together: sums "
                "over both are not measured yet."
            )
        if any(kind not in (*_SHARDS, "Replicate") for kind in kinds):
            raise Refusal(f"Parameter {name} is laid out as {', '.join(kinds)}, which is not measured yet.")
        place = mesh.get_coordinate()
        if any(at > 0 for at, kind in zip(place, kinds, strict=True) if kind == "Replicate"):
            found.append(name)
    return found


def _placements(parameter: Tensor) -> list[str]:
    layout: Any = parameter
    return [type(placement).__name__ for placement in layout.placements]
