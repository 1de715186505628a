"""Every symmetry that a model may have, by its structure; measurement decides which of them it has."""

from torch import nn

from learnmech.probes.symmetry.group import Group
from learnmech.probes.symmetry.layers import layers
from learnmech.probes.symmetry.pairs import pairs
from learnmech.probes.symmetry.single import scale, shift
from learnmech.probes.symmetry.stream import stream


def candidates(model: nn.Module) -> list[Group]:
    """List what may be a symmetry of the loss of a model, finer ones of a family before coarser ones.

    Generous: a candidate costs a few sums until it is refused, a missed symmetry is missed for good. It knows neither
    activations nor the order of execution, only the module tree and shapes. Frozen parameters are among them.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 5))
    >>> [group.label for group in candidates(model) if group.kind == "rescale"]
    ['0, 2']
    """
    found = layers(model)
    groups = [*scale(model, found), *shift(found), *pairs(model, found), *stream(model, found)]
    return list({(group.kind, group.label): group for group in groups}.values())
