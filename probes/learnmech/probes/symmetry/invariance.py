"""Scale-invariant weights, for probes that have the sums of whole tensors: found, certified, tested by rescaling."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from learnmech.probes.estimators import Motion, total
from learnmech.probes.estimators.weights import summed
from learnmech.probes.probe import TrainingView
from learnmech.probes.symmetry.certificates import Certificates, certified_of, publish
from learnmech.probes.symmetry.group import Group, Kind
from learnmech.probes.symmetry.rescaling import RescalingTests
from learnmech.probes.symmetry.residual import floor, precision_of
from learnmech.probes.symmetry.single import whole_scales


@dataclass(frozen=True, slots=True)
class Invariant:
    """Weights that the loss does not depend on the scale of.

    Attributes:
        names: The tensors: a weight, or a weight and its bias.
        motion: What an update did to them as one vector.
        residual: |<w, g>| / (|w||g|) of its gradient, NaN if there was none.
        confirmed: Whether the loss itself did not change at rescaled weights. It often cannot tell in half precision,
            and is not asked where it may not be evaluated: then the gradient alone certifies.
    """

    names: tuple[str, ...]
    motion: Motion
    residual: float
    confirmed: bool


class ScaleInvariance:
    """Which weights of a model the loss does not depend on the scale of.

    Candidates are all weights that a normalization may follow, without and with their biases. Five looks in a row at
    which <w, g> = 0 up to rounding and the epsilon of a normalization certify one, three above it take that back; and
    where the loss may be evaluated, it is at rescaled weights, once; what fails is certified, and tested, again after
    twice as many looks each time. What `Symmetries` has certified counts as well.

    References:
        van Laarhoven 2017, arXiv 1706.05350; <w, g> = 0: Kunin et al. 2021, arXiv 2012.04728, section 3.
    """

    def __init__(self) -> None:
        self._certificates = Certificates(refuses=False)  # the sums are there anyway
        self._tests = RescalingTests()
        self._candidates: list[tuple[Group, tuple[str, ...], float]] = []  # with their tensors and largest residuals

    def find(self, view: TrainingView) -> None:
        """Look for candidates, at the beginning and when parameters have come, gone or changed their type."""
        self._certificates.offer(whole_scales(view.model))
        publish(view.model, self._certificates)
        trained = view.parameters
        self._candidates = [
            (group, _names(group), _floor(group, [trained[n] for n in group.names], precise=view.precise))
            for group in self._certificates.open()
            if group.names <= trained.keys()
        ]

    def look(self, motions: Mapping[str, Motion]) -> None:
        """Take in what a gradient shows; what has no gradient, or one of zeros, tells nothing."""
        for group, names, largest in self._candidates:
            if all(name in motions for name in names):
                self._certificates.look(group, _residual(names, motions), largest)

    def members(self, model: nn.Module, motions: Mapping[str, Motion], *, tested: bool) -> list[Invariant]:
        """List what is certified now, by this probe or by another; each weight once, alone if it is so alone.

        Args:
            model: The model.
            motions: What is known of its tensors.
            tested: Whether to leave out what waits for the test by rescaling.
        """
        own = self._certificates.certified() if tested else []
        waiting = {group.label for group in own if self._tests.waits(group)}
        passed = {label for (_, label), test in self._tests.found.items() if test.invariant}
        found: dict[str, tuple[tuple[str, ...], bool]] = {}
        for group in certified_of(model, Kind.SCALE):
            names = _names(group)
            if group.label in waiting:
                continue
            if all(part.whole for part in group.parts) and all(name in motions for name in names):
                here = names, group.label in passed
                known = found.get(names[0], here)
                found[names[0]] = here if len(names) < len(known[0]) else known
        return [
            Invariant(names, total(motions[name] for name in names), _residual(names, motions), confirmed)
            for names, confirmed in found.values()
        ]

    def test(self, view: TrainingView) -> None:
        """Evaluate the loss at rescaled weights, for what is certified and was not tested.

        Raises:
            Refusal: The loss cannot be evaluated.
        """  # noqa: DOC502 (raised by `next`)
        self._tests.next(view, self._certificates.certified())


def _floor(group: Group, tensors: Sequence[Tensor], *, precise: bool) -> float:
    return floor(group, precision_of(tensors, precise=precise), sum(tensor.numel() for tensor in tensors))


def _names(group: Group) -> tuple[str, ...]:
    return tuple(part.parameter for part in group.parts)


def _residual(names: Sequence[str], motions: Mapping[str, Motion]) -> float:
    """Return |sum <w, g>| / sum |w||g| over tensors, as `read_residual` has it; NaN if it is 0/0."""
    own = [motions[name] for name in names]
    size = summed([math.sqrt(motion.weight_sq * motion.gradient_sq) for motion in own])
    return abs(summed([motion.along_gradient for motion in own])) / size if 0.0 < size < math.inf else math.nan
