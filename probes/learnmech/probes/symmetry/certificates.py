"""Which symmetries a model has, from looks at its gradients; for laws and other probes to ask."""

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary, WeakSet

from torch import nn

from learnmech.probes.probe import TrainingView
from learnmech.probes.symmetry.group import Group, Kind

LOOKS = 5
"""Looks in a row below the floor that certify a group: a single small inner product may be chance."""

REFUSALS = 3
"""Looks in a row above it that refuse one, for good; those of a certified group withdraw its certificate. One alone may
be a gradient that underflowed."""


@dataclass(slots=True)
class _Record:
    """What was seen of one group."""

    group: Group
    needed: int
    below: int = 0
    above: int = 0
    certified: bool = False
    ever: bool = False


@dataclass(slots=True, eq=False, weakref_slot=True)
class Certificates:
    """The certificates of one model, given by one probe.

    Attributes:
        looks: Looks in a row that certify.
        refuses: Whether what fails is looked at no more; False where a look costs nothing.
    """

    looks: int = LOOKS
    refuses: bool = True
    _records: dict[tuple[Kind, str], _Record] = field(default_factory=dict)
    _refused: set[tuple[Kind, str]] = field(default_factory=set)
    _settled: dict[str, Group] = field(default_factory=dict)

    def offer(self, groups: Iterable[Group]) -> None:
        """Take the candidates of the model as it is now; what is known of groups that are still there is kept."""
        known, self._records = self._records, {}
        for group in groups:
            key = (group.kind, group.label)
            old = known.get(key)
            if old is not None and old.group == group:
                self._records[key] = old
            elif key not in self._refused:
                self._records[key] = _Record(group, self.looks)
        self._settled = {record.group.family: record.group for record in self._records.values() if record.certified}

    def open(self) -> list[Group]:
        """List what is worth a look: neither refused, nor the coarser form of something certified."""
        groups = [record.group for record in self._records.values()]
        return [group for group in groups if self._settled.get(group.family, group) is group]

    def whole(self, group: Group) -> bool:
        """Tell whether a group is worth the comparison of whole blocks: their diagonals have balanced once."""
        record = self._records.get((group.kind, group.label))
        return record is not None and (record.below > 0 or record.ever)

    def look(self, group: Group, residual: float, limit: float) -> None:
        """Take the residual of a group at one measurement.

        Args:
            group: The group.
            residual: Its residual; NaN if there was nothing to see.
            limit: Largest residual that the arithmetic allows it.
        """
        record = self._records.get((group.kind, group.label))
        if record is None or math.isnan(residual):
            return
        if residual <= limit:
            record.below, record.above = record.below + 1, 0
            first = self._settled.get(group.family, record.group) is record.group
            if record.below >= record.needed and first and not record.certified:
                self._settled[group.family] = record.group
                for other in self._family(group):
                    other.ever = False  # what was taken for finer was not: it does not count as broken
                record.certified = record.ever = True
            return
        record.below, record.above = 0, record.above + 1
        if record.above >= REFUSALS:
            self.withdraw(group)

    def withdraw(self, group: Group) -> None:
        """Refuse a group, or take back its certificate: it goes on being looked at then."""
        key = (group.kind, group.label)
        record = self._records.get(key)
        if record is not None and record.ever:
            if record.certified:
                self._settled.pop(group.family, None)  # a coarser form may be the right one
                for other in self._family(group):
                    other.below = 0
            record.certified, record.below = False, 0
        elif record is not None and self.refuses:
            self._refused.add(key)
            del self._records[key]

    def contradict(self, group: Group) -> None:
        """Take back the certificate of a group that the loss has contradicted: the next takes twice as many looks."""
        record = self._records.get((group.kind, group.label))
        if record is not None:
            record.needed, record.below = 2 * record.needed, 0
            self.withdraw(group)

    def _family(self, group: Group) -> list[_Record]:
        return [record for record in self._records.values() if record.group.family == group.family]

    def certified(self, kind: Kind | None = None) -> list[Group]:
        """List the groups that have their symmetry now, of one kind or of all."""
        return [r.group for r in self._records.values() if r.certified and kind in (None, r.group.kind)]

    def ever(self) -> list[Group]:
        """List the groups that have or have had a certificate."""
        return [r.group for r in self._records.values() if r.ever]


_OF: WeakKeyDictionary[nn.Module, WeakSet[Certificates]] = WeakKeyDictionary()


def publish(model: nn.Module, certificates: Certificates) -> None:
    """Make the certificates of a model known to whoever asks, for as long as whoever gave them has them."""
    with suppress(TypeError):  # a model that cannot be hashed is known to nobody else
        _OF.setdefault(model, WeakSet()).add(certificates)


def _given(model: nn.Module) -> list[Certificates]:
    with suppress(TypeError):
        return list(_OF.get(model, ()))
    return []


def certified(view: TrainingView, kind: Kind | None = None) -> Sequence[Group]:
    """Return the groups of parameters whose symmetry the probes of this run have certified.

    `Symmetries` certifies all kinds, `WeightDynamics` the scale invariance of whole tensors.

    Args:
        view: What a probe sees of the training.
        kind: One kind of symmetry; None: all.

    Returns:
        The groups; none where no such probe runs, or not for long enough.
    """
    return certified_of(view.model, kind)


def certified_of(model: nn.Module, kind: Kind | None = None) -> list[Group]:
    """Return what `certified` does, of a model."""
    found = [group for given in _given(model) for group in given.certified(kind)]
    return list({(group.kind, group.label): group for group in found}.values())


def contradict(model: nn.Module, group: Group) -> None:
    """Take back the certificate of a group that the loss has contradicted, whoever gave it."""
    for given in _given(model):
        given.contradict(group)


def scale_invariant(view: TrainingView) -> dict[str, int]:
    """Return which parameters are certified scale invariant on their own: a law of |w| and angles applies to them.

    Returns:
        The number of units that are scale invariant by themselves, by the parameter's name: 1 for the whole tensor, its
        outputs where BatchNorm follows, if `Symmetries` has looked at them. Weights that are so together with their
        bias only are not among them.
    """
    found: dict[str, int] = {}
    for group in certified(view, Kind.SCALE):
        part = group.parts[0]
        if len(group.parts) == 1 and part.whole and part.parameter in view.parameters:
            units = part.of(view.parameters[part.parameter].detach()).shape[0]
            found[part.parameter] = max(units, found.get(part.parameter, 0))
    return found
