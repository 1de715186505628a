"""Whole models against a loop over single examples: attention, tied and shared weights, positions, convolutions."""

import pytest
import torch
from torch import nn
from torch.nn import functional

R = torch.randn


class Attention(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, **settings)
        nn.init.normal_(self.attention.in_proj_bias)

    def forward(self, query, *others):
        weights = not others
        key, value = (others * 2)[:2] if others else (query, query)
        return self.attention(query, key, value, need_weights=weights)[0]


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("others", [(), ((4, 3, 8),), ((4, 3, 8), (4, 3, 8)), ((4, 3, 5), (4, 3, 7))])
def test_attention(oracle, batch_first, others):
    kinds = {"kdim": 5, "vdim": 7} if others and others[0][2] == 5 else {}
    axis = 0 if batch_first else 1
    inputs = tuple(R(shape).movedim(0, axis).contiguous() for shape in ((4, 5, 8), *others))
    loss = lambda model, batch: oracle.cubic(model, batch, axis)
    oracle.check(Attention(batch_first=batch_first, **kinds), loss, inputs, axis)


class Language(nn.Module):
    """Tied embedding and head, a layer used twice, positions of both kinds, a scale, a token in front."""

    def __init__(self, head):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.positions = nn.Embedding(6, 8)
        self.place = nn.Parameter(R(9, 8))
        self.norm = nn.LayerNorm(8)
        self.middle = nn.Linear(8, 8)
        self.gain = nn.Parameter(R(8))
        self.first = nn.Parameter(R(1, 1, 8))
        if head == "module":
            self.head = nn.Linear(8, 11, bias=False)
            self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens) + self.positions(torch.arange(tokens.shape[1])) + self.place[: tokens.shape[1]]
        x = torch.tanh(self.middle(x + self.middle(x))) * self.gain
        x = self.norm(torch.cat([self.first.expand(len(x), -1, -1), x], dim=1))
        return self.head(x) if hasattr(self, "head") else functional.linear(x, self.embed.weight)


@pytest.mark.parametrize("head", ["module", "function"])
@pytest.mark.parametrize("batch", [4, 6])  # 6: as many examples as positions
def test_tied_and_shared_weights(oracle, head, batch):
    oracle.check(Language(head), oracle.cubic, (torch.randint(11, (batch, 6)),))


def test_without_the_cross_term_a_tied_weight_is_wrong(oracle):
    """The case above can fail: the sum of the squares of both uses is not the square of their sum."""
    model, batch = Language("module"), (torch.randint(11, (4, 6)),)
    exact = oracle.measure(model, oracle.cubic, batch, 4).squares()["embed.weight"]
    model.head.weight = nn.Parameter(model.embed.weight.detach().clone())
    apart = oracle.measure(model, oracle.cubic, batch, 4).squares()
    assert ((apart["embed.weight"] + apart["head.weight"]) / exact - 1).abs().max() > 0.05


class Transformer(nn.Module):
    """Causal, of torch's own blocks."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(13, 16)
        self.place = nn.Parameter(R(8, 16))
        block = {"dropout": 0.0, "batch_first": True}
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, 32, norm_first=first, **block) for first in (True, False)
        )
        self.head = nn.Linear(16, 13)

    def forward(self, tokens):
        x, mask = self.embed(tokens) + self.place, nn.Transformer.generate_square_subsequent_mask(8)
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        return self.head(x)


@pytest.mark.parametrize("batch", [5, 8])
def test_transformer(oracle, batch):
    entropy = lambda model, batch: functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())
    tokens = torch.randint(13, (batch, 9))
    oracle.check(Transformer(), entropy, (tokens[:, :-1], tokens[:, 1:]))


def test_cnn_with_group_norm(oracle):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.GroupNorm(2, 8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, stride=2, groups=2, bias=False),
        nn.GroupNorm(4, 8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 3 * 3, 5),
    )
    oracle.check(model, oracle.cubic, (R(6, 3, 14, 14),))


def test_another_oracle(oracle):
    """`torch.func.vmap(grad)` shares neither the hooks nor the loop."""
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.LayerNorm(7), nn.Linear(7, 2))
    x = R(6, 3, 5)

    def one(parameters, x):
        return (torch.func.functional_call(model, parameters, (x[None],)) + 0.3).pow(3).sum() / 6

    parameters = {name: p.detach() for name, p in model.named_parameters()}
    truth = torch.func.vmap(torch.func.grad(one), in_dims=(None, 0))(parameters, x)
    found = oracle.measure(model, oracle.cubic, (x,), 6).squares()
    for name, square in found.items():
        torch.testing.assert_close(square, truth[name].flatten(1).square().sum(1), rtol=1e-10, atol=0)


def test_mean_over_tokens(oracle):
    """With n_i tokens in example i, h_i is n_i / N times the example's own mean gradient, and sum h_i = g."""
    model, x = nn.Linear(5, 7), R(4, 6, 5)
    targets = torch.randint(7, (4, 6))
    targets[0, 2:], targets[2, 5:] = -100, -100
    entropy = lambda model, batch: functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())
    found = oracle.measure(model, entropy, (x, targets), 4).squares()["weight"]
    counts = (targets >= 0).sum(1)
    for i in range(4):
        (g,) = torch.autograd.grad(entropy(model, (x[i : i + 1], targets[i : i + 1])), [model.weight])
        share = counts[i] / counts.sum()
        torch.testing.assert_close(found[i], share**2 * g.square().sum(), rtol=1e-10, atol=0)


def test_both_estimates_are_unbiased(oracle):
    """All batches of 2 from 5 examples with replacement: the mean of the estimates is |G|^2 and tr Sigma themselves."""
    model, data = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), R(5, 3)
    rows = torch.cat(list(oracle.contributions(model, oracle.cubic, (data,)).values()), dim=1) * 5
    mean = rows.mean(0)
    trace = (rows - mean).square().sum(1).mean()
    squares, traces = [], []
    for i in range(5):
        for j in range(5):
            examples = oracle.measure(model, oracle.cubic, (data[[i, j]],), 2)
            whole = sum(p.grad.square().sum() for p in model.parameters())
            total = examples.in_scopes({"": list(examples.squares())})[""].sum()
            squares.append((whole - total) / (1 - 2 * 0.5**2))
            traces.append((total / 0.5 - whole) / (2 * 0.5 * 0.5))
    torch.testing.assert_close(torch.stack(squares).mean(), mean.square().sum(), rtol=1e-10, atol=0)
    torch.testing.assert_close(torch.stack(traces).mean(), trace, rtol=1e-10, atol=0)
