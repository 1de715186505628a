"""Which modules look like attention, how their projections are packed, and how large a head is."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from learnmech.probes.symmetry.group import Group, Kind, Part, Steps
from learnmech.probes.symmetry.layers import Layer

PROJECTIONS = 3
"""Queries, keys and values: as many layers with the same inputs in one module look like attention."""

SIZES = (8, 16, 32, 64, 128)
"""Sizes of a head that are tried where no attribute tells the number of heads."""

_HEADS = ("num_heads", "n_heads", "n_head", "num_attention_heads", "nhead", "heads")
_HEAD_SIZES = ("head_dim", "head_size", "d_head", "dim_head", "attention_head_size")


def attends(module: nn.Module, own: Sequence[Layer]) -> bool:
    """Tell whether a module may be attention: it has heads, three layers that read the same, or a packed one.

    Args:
        module: The module.
        own: Its own layers.
    """
    inputs = [layer.inputs for layer in own if layer.inputs]
    return (
        _number(module, _HEADS) > 0
        or any(inputs.count(width) >= PROJECTIONS for width in inputs)
        or any(0 < _keys(packed, last) == last.inputs for i, packed in enumerate(own) for last in own[i + 1 :])
    )


def head_sizes(model: nn.Module, module: nn.Module, width: int) -> tuple[list[int], bool]:
    """Return the size of a head as the module or the model tells it, and True; else the sizes it may have, and False.

    Args:
        model: The model.
        module: The attention.
        width: Outputs of the queries.
    """
    places = [module, getattr(module, "config", None), model, getattr(model, "config", None)]
    for place in places:
        size, heads = _number(place, _HEAD_SIZES), _number(place, _HEADS)
        size = size or (width // heads if heads and width % heads == 0 else 0)
        if size and width % size == 0:
            return [size], True
    return [size for size in SIZES if width % size == 0], False


def unpacked(packed: Layer, last: Layer, sizes: Sequence[int]) -> Iterator[tuple[Layer, Layer, Layer]]:
    """Yield how the queries, keys and values may lie in one layer: one after the other, or alternating head by head.

    Args:
        packed: The layer.
        last: The output projection; it consumes as many units as there are queries.
        sizes: Sizes of a head.
    """
    queries, keys = last.inputs, _keys(packed, last)
    if not keys:
        return
    yield (
        packed.cut(0, queries, "q"),
        packed.cut(queries, keys, "k"),
        packed.cut(queries + keys, keys, "v"),
    )
    if keys == queries:
        for size in sizes:
            q, k, v = (
                packed.interleaved(queries // size, PROJECTIONS, index, f"{name} of {queries // size}")
                for index, name in enumerate("qkv")
            )
            yield q, k, v


def query_key(a: Layer, b: Layer, sizes: Sequence[int], known: bool) -> Iterator[Group]:
    """Yield queries and keys of one attention: mixed by any matrix, else scaled by pairs of dimensions (RoPE).

    Several heads of queries may share one of keys. Rotated together are a dimension of the first half of a head and one
    of the second (GPT-NeoX, Llama in transformers), or two neighbours (RoFormer, Llama as published).

    Args:
        a: A projection.
        b: Another.
        sizes: Sizes of a head.
        known: Whether that is known; else whole blocks, which would have to be heads, are not compared.
    """
    many, few = (a, b) if a.outputs >= b.outputs else (b, a)
    if not few.outputs or many.outputs % few.outputs:
        return
    family = f"query_key of {a.path}, {b.path}"
    for size in sizes:
        if few.outputs % size:
            continue
        heads = few.outputs // size
        shared = [_shared(part, heads, many.outputs // few.outputs, size) for part in many.produced()]
        parts = (*shared, *(part.negative() for part in few.produced()))
        said = f"{a.path}, {b.path}" + ("" if known else f", heads of {size}")
        if known:
            yield Group(Kind.QUERY_KEY, said, parts, family, block=size)
        else:
            yield Group(Kind.QUERY_KEY, said, parts, family)
        if size % 2:
            continue
        halves = (("reshape", (heads, 2, size // 2, -1)), ("transpose", (1, 2)))
        for steps, what in ((halves, "halves"), ((), "neighbours")):
            final: Steps = (*steps, ("reshape", (few.outputs // 2, -1)))
            pairs = tuple(part.then(*final) for part in parts)
            yield Group(Kind.QUERY_KEY_PAIR, f"{said}, {what}", pairs, family)


def value_output(values: Layer, last: Layer, sizes: Sequence[int], known: bool) -> Iterator[Group]:
    """Yield values and the output projection of one attention; several heads of queries may share one of values.

    Args:
        values: The values.
        last: The output projection.
        sizes: Sizes of a head.
        known: Whether that is known.
    """
    if not values.outputs or last.inputs % values.outputs:
        return
    shared = last.inputs // values.outputs
    consumed = last.consumed(last.inputs)
    for size in sizes if shared > 1 or known else (1,):
        if consumed is None or values.outputs % size:
            continue
        outgoing = _shared(consumed, values.outputs // size, shared, size).negative()
        said = f"{values.path}, {last.path}" + ("" if known or shared == 1 else f", heads of {size}")
        parts = (*values.produced(), outgoing)
        block = size if known else 1
        yield Group(Kind.VALUE_OUTPUT, said, parts, f"values of {values.path}, {last.path}", block=block)


def _shared(part: Part, heads: int, share: int, size: int) -> Part:
    """Put the heads that share one together, as more elements of its units."""
    if share == 1:
        return part
    split: Steps = (("reshape", (heads, share, size, -1)), ("transpose", (1, 2)), ("reshape", (heads * size, -1)))
    return part.then(*split)


def _keys(packed: Layer, last: Layer) -> int:
    """Return how many keys a packed layer holds besides the queries that `last` consumes, 0 if it cannot be."""
    rest = packed.outputs - last.inputs
    fits = packed.inputs and last.inputs and last.outputs == packed.inputs and rest > 0 and rest % 2 == 0
    return rest // 2 if fits and last.inputs % (rest // 2) == 0 else 0


def _number(place: Any, names: Sequence[str]) -> int:
    for name in names:
        value = getattr(place, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return 0
