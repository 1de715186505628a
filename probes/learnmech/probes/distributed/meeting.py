"""Who takes part, before anybody waits for anybody: found out without a collective."""

import itertools
import logging
import time
import zlib

import torch.distributed as dist

from learnmech.probes.distributed.peers import Peers

logger = logging.getLogger("learnmech.probes")

PATIENCE = 30.0
"""Seconds that processes wait for one another once, at the beginning of a run. They come from the same line of the same
program; what separates them is a first batch, a compilation, an import."""

POLL = 0.01
"""Seconds between two looks."""

_meetings = itertools.count()


def all_present(peers: Peers, what: str = "") -> bool:
    """Tell whether all processes of a group come here, the same answer in each of them.

    A monitor that only one process has (`if rank == 0:`) must not wait for the others in a collective. So each
    announces itself in the store through which the group was founded. The first that has seen all, or has waited in
    vain, writes down the answer; it holds for all, whoever comes late included.

    Args:
        peers: The processes.
        what: What this process means to do; those that mean something else count as absent.
    """
    try:
        store = dist.distributed_c10d._get_default_store()  # noqa: SLF001 (no public name)
        members = "-".join(map(str, dist.get_process_group_ranks(peers.group or dist.group.WORLD)))
        key = f"learnmech/meeting/{next(_meetings)}/{members}/{zlib.crc32(what.encode()):08x}"
        deadline = time.monotonic() + PATIENCE
        store.add(f"{key}/present", 1)
        while store.add(f"{key}/present", 0) < peers.size and time.monotonic() < deadline:
            time.sleep(POLL)
        proposal = "yes" if store.add(f"{key}/present", 0) >= peers.size else "no"
        answer = store.compare_set(f"{key}/answer", "", proposal)
        return bytes(answer) == b"yes"
    except Exception as error:  # noqa: BLE001 (a store may fail in any way: then this process is on its own)
        logger.warning("learnmech could not meet the other processes: %r", error)
        return False
