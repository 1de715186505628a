"""The candidate of the residual stream: everything that is ever written into it, scaled together."""

from collections.abc import Iterator, Sequence

from torch import nn

from learnmech.probes.symmetry.group import Group, Kind, Part
from learnmech.probes.symmetry.layers import Layer

_WHOLE: tuple[str, tuple[int, ...]] = ("reshape", (1, -1))


def stream(model: nn.Module, layers: Sequence[Layer]) -> Iterator[Group]:
    """Yield the writers of a residual stream as wide as the embeddings are.

    The loss does not change when all of them are scaled together if only normalizations read the stream, the last one
    before the output included, and nothing else writes to it: neither a tied output nor weights of another scale.

    Writers are the embeddings, positions (parameters outside of layers whose last dimension is that wide), and in each
    module the layer that produces as many units: the only one that consumes another number of them, else the last.

    Args:
        model: The model.
        layers: Its layers.
    """
    embeddings = [layer for layer in layers if not layer.inputs and layer.out_steps == (("t", ()),)]
    for width in dict.fromkeys(layer.outputs for layer in embeddings):
        writers = [layer for layer in embeddings if layer.outputs == width]
        for parent in dict.fromkeys(layer.parent for layer in layers):
            own = [layer for layer in layers if layer.parent == parent and layer.inputs and layer.outputs == width]
            changing = [layer for layer in own if layer.inputs != width]
            writers += (changing or own)[-1:]
        known = {name for layer in layers for name in (layer.weight, layer.bias)}
        positions = [
            Part(name)
            for name, p in model.named_parameters()
            if name not in known and p.dim() >= 2 and p.shape[-1] == width
        ]
        parts = [*(part for layer in writers for part in layer.produced()), *positions]
        label = f"stream of {width}"
        yield Group(Kind.RESIDUAL_STREAM, label, tuple(part.then(_WHOLE) for part in parts), label)
