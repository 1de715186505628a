"""Measuring in several processes at once: who they are, and how they keep in step whatever fails in one of them."""

from learnmech.probes.distributed.failures import PeerFailed
from learnmech.probes.distributed.fsdp import is_sharded
from learnmech.probes.distributed.group import companions, peers_in, peers_of, why_not_alone
from learnmech.probes.distributed.hidden import hidden
from learnmech.probes.distributed.peers import Peers, Step

__all__ = ["PeerFailed", "Peers", "Step", "companions", "hidden", "is_sharded", "peers_in", "peers_of", "why_not_alone"]
