"""Candidates between layers: hidden units, gated units, and the projections of attention."""

from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from learnmech.probes.symmetry.attention import attends, head_sizes, query_key, unpacked, value_output
from learnmech.probes.symmetry.group import Group, Kind
from learnmech.probes.symmetry.layers import Layer

NEXT = 3
"""Layers after a layer, in the order of registration, that may consume what it produces: a normalization and the
convolution of a shortcut may lie between. Those of the same module are looked at whatever their order."""


def pairs(model: nn.Module, layers: Sequence[Layer]) -> Iterator[Group]:
    """Yield what may be balanced between two layers.

    Args:
        model: The model.
        layers: Its layers in the order of registration.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    own: dict[str, list[Layer]] = {}
    for layer in layers:
        own.setdefault(layer.parent, []).append(layer)
    attention = {path for path, members in own.items() if attends(modules[path], members)}
    for index, producer in enumerate(layers):
        after = layers[index + 1 : index + 1 + NEXT]
        near = [layer for layer in own[producer.parent] if layer is not producer]
        near += [layer for layer in after if layer.parent != producer.parent]
        if producer.parent in attention and producer.inputs:
            yield from _attention(model, modules, producer, near, own[producer.parent])
        else:
            yield from _hidden(producer, near, own)


def _hidden(producer: Layer, near: Sequence[Layer], own: Mapping[str, Sequence[Layer]]) -> Iterator[Group]:
    for consumer in near:
        label = f"{producer.path}, {consumer.path}"
        halves = []
        if producer.outputs == 2 * consumer.inputs:
            halves = [producer.cut(start, consumer.inputs, f"{start}:") for start in (0, consumer.inputs)]
        for half in halves:
            yield from _balance(Kind.GATED, half, consumer, f"{half.path}, {consumer.path}")
        beside = [
            layer
            for layer in own[producer.parent]
            if layer is not producer and (layer.inputs, layer.outputs) == (producer.inputs, producer.outputs)
        ]
        gated = bool(beside) and producer.inputs > 0 and consumer not in beside and consumer.inputs == producer.outputs
        yield from _balance(Kind.GATED if gated else Kind.RESCALE, producer, consumer, label)


def _balance(kind: Kind, producer: Layer, consumer: Layer, label: str) -> Iterator[Group]:
    consumed = consumer.consumed(producer.outputs)
    if consumed is not None:
        yield Group(kind, label, (*producer.produced(), consumed.negative()), f"between {label}")


def _attention(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    layer: Layer,
    near: Sequence[Layer],
    own: Sequence[Layer],
) -> Iterator[Group]:
    """Any layer of the module may be the queries, the keys, the values or all of them in one."""
    module = modules[layer.parent]
    for last in near:
        if not last.inputs:
            continue
        sizes, known = head_sizes(model, module, last.inputs)
        yield from value_output(layer, last, sizes, known)
        for queries, keys, values in unpacked(layer, last, sizes):
            yield from value_output(values, last, sizes, known)
            yield from query_key(queries, keys, sizes, known)
    for other in own[own.index(layer) + 1 :]:
        if layer.inputs and other.inputs:
            sizes, known = head_sizes(model, module, max(layer.outputs, other.outputs))
            yield from query_key(layer, other, sizes, known)
