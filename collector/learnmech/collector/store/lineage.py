"""Which attempts count, and up to which step: those that led to the newest weights. No database in here.

Attempts form a tree: each goes on from a checkpoint of its parent, and a checkpoint may be resumed any number of times.
Laid over each other in order of time, two branches would give a curve that no training ever went through. So what
counts is one path: from the newest attempt that nobody resumed back to the root, each attempt up to where the next one
of the path begins. Nothing here depends on the order in which the attempts became known.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from learnmech.collector.store.schema import FOREVER

NOTHING = -1
"""`keep_to` of an attempt of which nothing counts: the step before the first."""


class Branch(NamedTuple):
    """An attempt as a part of the tree.

    Attributes:
        number: Its number in the store.
        claimed: The number that its checkpoint gave it: how many resumes lie between the start of the run and it.
        start: Step at which it began.
        id: Its identity; None from an older client.
        begun: When it began; None from an older client.
        parent: Identity of the attempt that it goes on from, if it said so.
    """

    number: int
    claimed: int
    start: int
    id: str | None = None
    begun: float | None = None
    parent: str | None = None


def kept(branches: Sequence[Branch]) -> tuple[int, dict[int, int]]:
    """Return the number of the newest attempt, and the last step that counts by attempt.

    The newest is the one that began last among those that nobody resumed, so that a wrong clock cannot put a resume
    before what it goes on from.
    """
    parents = _parents(branches)
    resumed = {parent.number for parent in parents.values() if parent is not None}
    newest = max((branch for branch in branches if branch.number not in resumed), key=_age)
    keep_to = {branch.number: NOTHING for branch in branches}
    branch: Branch | None = newest
    until = FOREVER
    while branch is not None:
        keep_to[branch.number] = until
        until = min(until, branch.start - 1)
        branch = parents[branch.number]
    return newest.number, keep_to


def _age(branch: Branch) -> tuple[float, int, str]:
    # Older clients do not say when an attempt began: those that do came after an upgrade.
    return -math.inf if branch.begun is None else branch.begun, branch.claimed, branch.id or ""


def _parents(branches: Iterable[Branch]) -> dict[int, Branch | None]:
    """Return what each attempt goes on from, by number.

    Where nobody said so, or its parent never arrived: from the newest of the next lower number, as in a run that was
    never resumed twice from one checkpoint. Numbers grow from parent to child, so there is no way round in a circle.
    """
    branches = sorted(branches, key=lambda branch: (branch.claimed, _age(branch)))
    named = {branch.id: branch for branch in branches if branch.id is not None}
    parents: dict[int, Branch | None] = {}
    below: Branch | None = None
    for claimed, siblings in groupby(branches, key=lambda branch: branch.claimed):
        last = below
        for branch in siblings:
            parent = None if branch.parent is None else named.get(branch.parent)
            parents[branch.number] = below if parent is None or parent.claimed >= claimed else parent
            last = branch
        below = last
    return parents
