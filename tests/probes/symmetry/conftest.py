"""Models whose symmetries are known, written out plainly, and the residuals of all candidates in them."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from learnmech.probes.symmetry.candidates import candidates
from learnmech.probes.symmetry.residual import floor, precision_of, read_residual, residual_sums
from learnmech.probes.symmetry.sums import Reader


class RMSNorm(nn.Module):
    def __init__(self, width, eps=1e-5):
        super().__init__()
        self.weight = nn.Parameter(1 + 0.1 * torch.randn(width))
        self.eps = eps

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def rotated(x, rope):
    """Rotate pairs of dimensions by angles that grow with the position. [batch, heads, length, size]"""
    length, size = x.shape[-2:]
    angle = torch.arange(length)[:, None] / 100.0 ** (torch.arange(size // 2) / (size // 2))
    cos, sin = angle.cos().to(x), angle.sin().to(x)
    halves = rope == "halves"
    a, b = (x[..., : size // 2], x[..., size // 2 :]) if halves else (x[..., ::2], x[..., 1::2])
    pairs = [a * cos - b * sin, a * sin + b * cos]
    return torch.cat(pairs, -1) if halves else torch.stack(pairs, -1).flatten(-2)


class Attention(nn.Module):
    """`shared` queries for each key; `rope`: '', 'halves' or 'neighbours'; `packed`: '', 'blocks' or 'heads'."""

    def __init__(self, width, heads, shared=1, rope="halves", packed="", norm=False, bias=False):
        super().__init__()
        self.n_heads, self.rope, self.packed, self.size = heads, rope, packed, width // heads
        self.shared, self.kv = shared, width // shared
        if packed:
            self.qkv = nn.Linear(width, width + 2 * self.kv, bias=bias)
        else:
            self.wq = nn.Linear(width, width, bias=bias)
            self.wk = nn.Linear(width, self.kv, bias=bias)
            self.wv = nn.Linear(width, self.kv, bias=bias)
        self.wo = nn.Linear(width, width, bias=False)
        self.q_norm = RMSNorm(self.size) if norm else nn.Identity()
        self.k_norm = RMSNorm(self.size) if norm else nn.Identity()

    def forward(self, x):
        batch, length, width = x.shape
        if self.packed == "heads":
            q, k, v = self.qkv(x).view(batch, length, self.n_heads, 3, self.size).permute(3, 0, 2, 1, 4)
        else:
            sizes = [width, self.kv, self.kv]
            flat = self.qkv(x).split(sizes, -1) if self.packed else [self.wq(x), self.wk(x), self.wv(x)]
            q, k, v = (t.view(batch, length, -1, self.size).transpose(1, 2) for t in flat)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.rope:
            q, k = rotated(q, self.rope), rotated(k, self.rope)
        k, v = (t.repeat_interleave(self.shared, 1) for t in (k, v))
        scores = q @ k.mT / self.size**0.5 + torch.full((length, length), -1e4).triu(1).to(x)
        return self.wo((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    def __init__(self, width, hidden, eps, attention):
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(width, eps), RMSNorm(width, eps)
        self.attention = Attention(width, 4, **attention)
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        y = self.norm2(x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))


class Transformer(nn.Module):
    """RMSNorm, SwiGLU, rotary positions: the layers of Llama."""

    def __init__(self, vocabulary=29, width=32, hidden=48, eps=1e-5, tied=False, blocks=2, **attention):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, hidden, eps, attention) for _ in range(blocks))
        self.norm = RMSNorm(width, eps)
        self.head = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


@pytest.fixture
def transformer():
    """`transformer(dtype, **settings)`: RMSNorm, SwiGLU, rotary positions, two blocks of four heads if not told."""

    def make(dtype=torch.float64, **settings):
        torch.manual_seed(0)
        return Transformer(**settings).to(dtype)

    return make


@pytest.fixture
def tokens():
    """`tokens.loss(model, batch)` of the tokens `tokens.batch(seed)`."""

    class Tokens:
        @staticmethod
        def batch(seed=1):
            return torch.randint(29, (8, 17), generator=torch.Generator().manual_seed(seed))

        @staticmethod
        def loss(model, batch):
            logits = model(batch[:, :-1]).flatten(0, 1)
            return functional.cross_entropy(
                logits.to(torch.promote_types(logits.dtype, torch.float32)), batch[:, 1:].flatten()
            )

    return Tokens


@pytest.fixture
def examples():
    """`examples.loss(model, batch)`: cross-entropy of `examples.batch(*shape, classes=5)`."""

    class Examples:
        @staticmethod
        def batch(*shape, classes=5, dtype=torch.float64, seed=1):
            drawn = torch.Generator().manual_seed(seed)
            return torch.randn(shape, generator=drawn, dtype=torch.float64).to(dtype), torch.randint(
                classes, (shape[0],), generator=drawn
            )

        @staticmethod
        def loss(model, batch):
            return functional.cross_entropy(model(batch[0]), batch[1])

    return Examples


class Residuals:
    """The residuals of all candidates of a model after a backward pass."""

    def __init__(self, model, precise=True):
        weights = dict(model.named_parameters())
        gradients = {name: p.grad for name, p in weights.items() if p.grad is not None}
        reader = Reader(weights, gradients, {})
        self.values, self.floors = {}, {}
        for group in candidates(model):
            if group.names <= gradients.keys():
                sums = [reader.sums(part, linear=group.linear, momentum=False) for part in group.parts]
                precision = precision_of([gradients[name] for name in group.names], precise=precise)
                value = read_residual(residual_sums(group, reader, sums, whole=True).tolist(), precision)
                self.values[group.kind, group.label] = value
                self.floors[group.kind, group.label] = floor(group, precision)

    def holding(self, kind):
        """List the labels of a kind that are below their floors."""
        return sorted(key[1] for key, value in self.values.items() if key[0] == kind and value <= self.floors[key])

    def largest(self, kind):
        """Return the largest residual of those."""
        return max(self.values[kind, label] for label in self.holding(kind))

    def least_refused(self, kind):
        """Return the smallest residual of a kind above its floor."""
        return min(value for key, value in self.values.items() if key[0] == kind and value > self.floors[key])


@pytest.fixture
def residuals():
    """`residuals(model, loss, batch)`: the residuals of all candidates."""

    def measure(model, loss, batch, *, autocast=False):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            value = loss(model, batch)
        value.backward()
        return Residuals(model, precise=not autocast)

    return measure
