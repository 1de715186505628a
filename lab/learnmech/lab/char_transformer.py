r"""A small character transformer in the style of current language models, built so that most matrices have no scale.

Each block is x + norm(attention(norm(x))), then x + norm(swiglu(norm(x))), with rotary positions, queries and keys
normalized per head, and no biases. A loss that does not change when a matrix is multiplied by a positive number gives
<w, dL/dw> = 0, and then weight decay and gradient noise alone settle how fast that matrix turns:

| matrix         | what makes it scale invariant                                                  |
| -------------- | ------------------------------------------------------------------------------ |
| query, key     | the norm of every head's query and key                                         |
| value, output  | attention is linear in both, and the norm follows                              |
| up, down       | SwiGLU is linear in both, and the norm follows                                 |
| gate           | not: silu is not homogeneous                                                   |
| embedding      | not: the residual stream adds blocks of fixed size to it                       |
| head           | not: its scale is the temperature of the softmax                               |
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention, silu

EPSILON: Final = 1e-10
"""Added to mean squares in the norms. Scale invariance needs it far below them: the residue <w, g>/(|w||g|) is about
EPSILON / mean square, and values behind two decayed matrices have mean squares of 1e-3."""

ATTENTION_SCALE: Final = 1.2
"""Normalized queries and keys give logits of at most sqrt(head size); a factor above 1 lets attention be sharper."""

_INVARIANT: Final = ("query", "key", "value", "output", "up", "down")


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a transformer.

    Attributes:
        vocabulary: Number of characters told apart.
        context: Longest window.
        width: Size of the residual stream.
        heads: Attention heads per layer.
        layers: Blocks.
        hidden: Units of each SwiGLU.
    """

    vocabulary: int
    context: int = 48
    width: int = 64
    heads: int = 2
    layers: int = 2
    hidden: int = 128

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width {self.width} over {self.heads} heads: expected an even size per head, rotary positions turn "
                "pairs"
            )


class Norm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + EPSILON), times a learned gain per channel; no bias."""

    def __init__(self, size: int) -> None:
        super().__init__(size, eps=EPSILON)


class Attention(nn.Module):
    """Causal self-attention with rotary positions and normalized queries and keys."""

    cosine: Tensor
    sine: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        size = shape.width // shape.heads
        self.heads = shape.heads
        self.query = nn.Linear(shape.width, shape.width, bias=False)
        self.key = nn.Linear(shape.width, shape.width, bias=False)
        self.value = nn.Linear(shape.width, shape.width, bias=False)
        self.output = nn.Linear(shape.width, shape.width, bias=False)
        self.query_norm, self.key_norm = Norm(size), Norm(size)
        frequencies = 10_000.0 ** (-torch.arange(size // 2) / (size // 2))
        angles = torch.arange(shape.context)[:, None] * frequencies  # [context, size / 2]
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return what each position gathers from itself and the ones before: [batch, length, width]."""
        batch, length, width = x.shape

        def heads(y: Tensor) -> Tensor:
            return y.view(batch, length, self.heads, -1).transpose(1, 2)  # [batch, heads, length, size]

        query = self._rotate(self.query_norm(heads(self.query(x))))
        key = self._rotate(self.key_norm(heads(self.key(x))))
        size = width // self.heads
        mixed = scaled_dot_product_attention(
            query, key, heads(self.value(x)), is_causal=True, scale=ATTENTION_SCALE / size**0.5
        )
        result: Tensor = self.output(mixed.transpose(1, 2).reshape(batch, length, width))
        return result

    def _rotate(self, x: Tensor) -> Tensor:
        """Turn each pair of channels by an angle that grows with the position (Su et al. 2021, arXiv 2104.09864)."""
        first, second = x.chunk(2, dim=-1)
        cosine, sine = self.cosine[: x.shape[-2]], self.sine[: x.shape[-2]]
        return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1)


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x) (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate = nn.Linear(shape.width, shape.hidden, bias=False)
        self.up = nn.Linear(shape.width, shape.hidden, bias=False)
        self.down = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the gated units, projected back: [batch, length, width]."""
        result: Tensor = self.down(silu(self.gate(x)) * self.up(x))
        return result


class Block(nn.Module):
    """Attention and SwiGLU, each between two norms."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention, self.swiglu = Attention(shape), SwiGLU(shape)
        self.before_attention, self.after_attention = Norm(shape.width), Norm(shape.width)
        self.before_swiglu, self.after_swiglu = Norm(shape.width), Norm(shape.width)

    def forward(self, x: Tensor) -> Tensor:
        """Add both to the residual stream: [batch, length, width]."""
        x = x + self.after_attention(self.attention(self.before_attention(x)))
        result: Tensor = x + self.after_swiglu(self.swiglu(self.before_swiglu(x)))
        return result


class CharTransformer(nn.Module):
    """Predicts the next character at every position.

    Args:
        shape: Sizes.
        seed: Seed of the weights; the global generator is left as it was.
    """

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(shape.vocabulary, shape.width)
            self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
            self.norm = Norm(shape.width)
            self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)

    def forward(self, codes: Tensor) -> Tensor:
        """Return logits [batch, length, vocabulary] for character codes [batch, length]."""
        x = self.embedding(codes)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits

    def scale_invariant(self) -> list[str]:
        """Name the matrices whose multiplication by a positive number leaves every output as it is."""
        return [name for name, p in self.named_parameters() if p.dim() == 2 and name.split(".")[-2] in _INVARIANT]


def next_character_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the cross entropy of the next character in nats, averaged over windows and positions."""
    codes, following = batch
    return cross_entropy(model(codes).flatten(0, 1), following.flatten())
