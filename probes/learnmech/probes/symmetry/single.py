"""Candidates that concern one layer: scale invariance, and shifts of all outputs alike."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod

from torch import Tensor, nn

from learnmech.probes.symmetry.group import Group, Kind, Part, Steps
from learnmech.probes.symmetry.layers import COLUMN, Layer
from learnmech.probes.symmetry.layers import layers as layers_of

_WHOLE: tuple[str, tuple[int, ...]] = ("reshape", (1, -1))


def scale(model: nn.Module, layers: Sequence[Layer]) -> Iterator[Group]:
    """Yield each weight with two or more dimensions as perhaps scale invariant: the loss does not change with |w|.

    In this order, the finest first: per output (BatchNorm, InstanceNorm, weight normalization follows); per group of
    outputs that a normalization in the model has the size of (normalized queries and keys, GroupNorm), without and with
    the bias; the whole matrix, without and with its bias (LayerNorm, RMSNorm).
    """
    sizes, parts = _norms(model)
    known: set[str] = set()
    for layer in layers:
        if layer.out_steps == COLUMN:
            continue  # the weight of a normalization
        produced = layer.produced()
        known.add(layer.weight)
        counts = {layer.outputs // size for size in sizes if layer.outputs % size == 0} | {
            count for count in parts if layer.outputs % count == 0
        }
        yield from _scales(layer.path, produced, sorted(counts - {1, layer.outputs}, reverse=True))
    for name, p in model.named_parameters():
        if p.dim() >= 2 and name not in known:
            yield from _scales(name, (Part(name, (("flatten", (1,)),)),), [])


def _scales(label: str, produced: tuple[Part, ...], counts: Sequence[int]) -> Iterator[Group]:
    family = f"scale of {label}"
    weight = produced[:1]
    yield Group(Kind.SCALE, f"{label} per output", weight, family)
    for count in counts:
        step = ("reshape", (count, -1))
        for some, what in _with_and_without(produced):
            parts = tuple(part.then(step) for part in some)
            yield Group(Kind.SCALE, f"{label}{what} in {count} groups", parts, family)
    for some, what in _with_and_without(produced):
        yield Group(Kind.SCALE, f"{label}{what}", tuple(part.then(_WHOLE) for part in some), family)


def whole_scales(model: nn.Module) -> Iterator[Group]:
    """Yield each weight with two or more dimensions as perhaps scale invariant as a whole, without and with its bias.

    What is so unit by unit is so as a whole. Each is a family of its own: while a bias is small both may seem to be.
    """
    for group in scale(model, layers_of(model)):
        if all(part.whole and part.steps[-1:] == (_WHOLE,) for part in group.parts):
            yield replace(group, family=group.label)


def _with_and_without(produced: tuple[Part, ...]) -> list[tuple[tuple[Part, ...], str]]:
    return [(produced[:1], ""), (produced, " with bias")][: len(produced)]


def _norms(model: nn.Module) -> tuple[set[int], set[int]]:
    """Return how many features normalizations in the model take together, and into how many groups they cut."""
    sizes: set[int] = set()
    groups: set[int] = set()
    for module in model.modules():
        shape = getattr(module, "normalized_shape", None)
        # not the attribute: spectral normalization computes it, and moves its buffers
        weight = module._parameters.get("weight")  # noqa: SLF001
        if isinstance(shape, tuple | list):
            sizes.add(prod(shape))
        elif isinstance(module, nn.GroupNorm):
            groups.add(module.num_groups)
        elif isinstance(weight, Tensor) and weight.dim() == 1:
            sizes.add(weight.numel())  # a normalization of one's own
    return {size for size in sizes if size > 1}, groups


def shift(layers: Sequence[Layer]) -> Iterator[Group]:
    """Yield each weight and each bias as perhaps indifferent to one vector added for every output.

    The softmax of a cross-entropy takes it out of the logits, a LayerNorm out of what it normalizes, BatchNorm a bias.
    """
    for layer in layers:
        if layer.outputs < 2:  # of one output the sum is the gradient itself
            continue
        for part, what in zip(layer.produced(), ("", ".bias"), strict=False):
            label = f"{layer.path}{what}"
            turned: Steps = (("t", ()),)
            yield Group(Kind.SHIFT, label, (part.then(*turned),), f"shift of {label}")
