"""The layers of a model as producers and consumers of hidden units, from its module tree and the shapes in it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from learnmech.probes.symmetry.group import Part, Steps


@dataclass(frozen=True, slots=True)
class Layer:
    """A weight between units of two layers.

    Attributes:
        path: The module's name, or that with the part of it that this is.
        parent: The name of the module around it.
        weight: The weight's name.
        bias: The bias's name, '' without one.
        outputs: Units that it produces.
        inputs: Units that it consumes; 0 for embeddings and for the weights of normalizations, which consume none.
        out_steps: What makes the weight [outputs, rest].
        bias_steps: What makes the bias [outputs, 1].
        in_steps: What makes the weight [inputs, rest].
    """

    path: str
    parent: str
    weight: str
    bias: str
    outputs: int
    inputs: int
    out_steps: Steps = ()
    bias_steps: Steps = ()
    in_steps: Steps = ()

    def produced(self) -> tuple[Part, ...]:
        """Return weight and bias by the units they produce."""
        weight = Part(self.weight, self.out_steps)
        return (weight, Part(self.bias, self.bias_steps)) if self.bias else (weight,)

    def consumed(self, units: int) -> Part | None:
        """Return the weight by the units it consumes, None if it cannot consume so many.

        After a flattening each unit is consumed at several places, one after the other.
        """
        if not units or not self.inputs or self.inputs % units:
            return None
        part = Part(self.weight, self.in_steps)
        return part if units == self.inputs else part.then(("reshape", (units, -1)))

    def cut(self, start: int, outputs: int, name: str) -> "Layer":
        """Return a layer of some of its outputs, as they lie one after the other."""
        narrow = ("narrow", (0, start, outputs))
        return self._part(outputs, name, narrow)

    def interleaved(self, heads: int, parts: int, index: int, name: str) -> "Layer":
        """Return one of several layers whose outputs alternate, head by head."""
        size = self.outputs // (heads * parts)
        split = ("reshape", (heads, parts, size, -1))
        return self._part(heads * size, name, split, ("select", (1, index)), ("reshape", (heads * size, -1)))

    def _part(self, outputs: int, name: str, *steps: tuple[str, tuple[int, ...]]) -> "Layer":
        return replace(
            self,
            path=f"{self.path}[{name}]",
            outputs=outputs,
            out_steps=self.out_steps + steps,
            bias_steps=self.bias_steps + steps,
            inputs=0,  # it is looked at from its outputs only
        )


COLUMN: Steps = (("reshape", (-1, 1)),)
"""What cuts a bias, or the weight of a normalization, into units."""


def layers(model: nn.Module) -> list[Layer]:
    """List the layers of a model in the order in which its modules were registered.

    Known are modules with a parameter called `weight`: linear layers (also those that keep it transposed),
    convolutions, embeddings, normalizations; a module of another kind with a matrix called `weight` is taken for
    linear. The packed projection of `nn.MultiheadAttention` counts as three layers.
    """
    names = {id(p): name for name, p in model.named_parameters()}  # a tied parameter under its first name
    return [layer for path, module in model.named_modules() for layer in _of(path, module, names)]


def _of(path: str, module: nn.Module, names: dict[int, str]) -> Iterator[Layer]:
    parent = path.rpartition(".")[0]
    own = dict(module.named_parameters(recurse=False))
    if isinstance(module, nn.MultiheadAttention):
        yield from _packed(path, module, names)
        return
    weight, bias = own.get("weight"), own.get("bias")
    if weight is None:
        return
    name, bias_name = names[id(weight)], "" if bias is None else names[id(bias)]
    base = Layer(path, parent, name, bias_name, 0, 0, bias_steps=COLUMN)
    made = _made(base, module, weight)
    if made is not None and (bias is None or bias.numel() == made.outputs):
        yield made


def _made(base: Layer, module: nn.Module, weight: Tensor) -> Layer | None:
    shape = tuple(weight.shape)
    if weight.dim() == 1:
        if weight.numel() == 1:  # not one unit but a slope, or a scale, of all of them
            return None
        return replace(base, outputs=shape[0], out_steps=COLUMN)
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return replace(base, outputs=shape[1], out_steps=(("t", ()),))
    if isinstance(module, _ConvNd):
        return _convolution(base, module, shape)
    if weight.dim() != 2:
        return None
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):  # GPT-2's linear layer keeps [inputs, outputs]
        return replace(base, outputs=shape[1], inputs=shape[0], out_steps=(("t", ()),))
    return replace(base, outputs=shape[0], inputs=shape[1], in_steps=(("t", ()),))


def _convolution(base: Layer, module: _ConvNd, shape: tuple[int, ...]) -> Layer:
    """Each group of a convolution connects its own inputs to its own outputs."""
    groups, places = module.groups, prod(shape[2:])
    transposed = isinstance(module, _ConvTransposeNd)
    # [groups, outputs of a group, inputs of a group, places], transposed convolutions: inputs first
    split: tuple[str, tuple[int, ...]] = ("reshape", (groups, shape[0] // groups, shape[1], places))
    first = (split, ("reshape", (shape[0], -1)))
    second = (split, ("transpose", (1, 2)), ("reshape", (groups * shape[1], -1)))
    inputs, outputs = (first, second) if transposed else (second, first)
    return replace(base, outputs=module.out_channels, inputs=module.in_channels, out_steps=outputs, in_steps=inputs)


def _packed(path: str, module: Any, names: dict[int, str]) -> Iterator[Layer]:
    """Its output projection follows as a module of its own."""
    if module.bias_k is not None:  # further keys and values, which no projection makes
        return
    held = module._parameters  # noqa: SLF001 (an attribute may be computed, by spectral normalization, say)
    in_bias = held.get("in_proj_bias")
    bias = "" if in_bias is None else names[id(in_bias)]
    width = module.embed_dim
    packed = held.get("in_proj_weight") is not None
    for index, part in enumerate(("q", "k", "v")):
        weight = held.get("in_proj_weight" if packed else f"{part}_proj_weight")
        if weight is None or id(weight) not in names:
            continue
        narrow = ("narrow", (0, index * width, width))
        yield Layer(
            f"{path}.{part}",
            path,
            names[id(weight)],
            bias,
            width,
            weight.shape[1],
            out_steps=(narrow,) if packed else (),
            bias_steps=(*COLUMN, narrow),
            in_steps=((narrow, ("t", ())) if packed else (("t", ()),)),
        )
