"""The test on the loss itself says the same as the identities on gradients, which it does not use."""

import pytest
import torch
from torch import nn

from learnmech.probes.symmetry import candidates, rescaling


def moved(model, loss, batch, kind, label, **settings):
    weights = dict(model.named_parameters())
    group = next(group for group in candidates(model) if (group.kind, group.label) == (kind, label))

    @torch.no_grad()
    def at(new):
        return float(loss(lambda x: torch.func.functional_call(model, {**weights, **new}, (x,)), batch))

    before = [p.detach().clone() for p in model.parameters()]
    found = rescaling(at, group, weights, **settings)
    assert all(map(torch.equal, before, model.parameters())), "the weights themselves are left alone"
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_form_of_a_transformer(dtype, transformer, tokens):
    model, batch = transformer(dtype), tokens.batch()
    for kind, label in [
        ("gated", "blocks.0.up, blocks.0.down"),
        ("value_output", "blocks.1.attention.wv, blocks.1.attention.wo"),
        ("query_key_pair", "blocks.0.attention.wq, blocks.0.attention.wk, halves"),
        ("residual_stream", "stream of 32"),
        ("shift", "head"),
        ("rescale", "norm, head"),
    ]:
        found = moved(model, tokens.loss, batch, kind, label)
        assert found.invariant, (kind, label, found)
    for kind, label in [("gated", "blocks.0.gate, blocks.0.down"), ("scale", "head"), ("shift", "blocks.0.down")]:
        found = moved(model, tokens.loss, batch, kind, label)
        assert found.invariant is False, (kind, label, found)


def test_normalizations_and_what_is_none(examples):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 5)).double()
    nn.init.normal_(model[0].bias)
    batch = examples.batch(32, 6)
    assert moved(model, examples.loss, batch, "scale", "0 with bias").invariant
    assert moved(model, examples.loss, batch, "scale", "0").invariant is False, "the bias is scaled along"
    assert moved(model, examples.loss, batch, "scale", "3").invariant is False


def test_what_cannot_be_told_is_not_guessed(examples):
    model, batch = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 5)).double(), examples.batch(8, 6)
    noisy = lambda call, batch: examples.loss(call, batch) + torch.rand(())
    assert moved(model, noisy, batch, "rescale", "0, 2").invariant is None, "the loss is not deterministic"
    flat = lambda call, batch: 1.0 + 0.0 * examples.loss(call, batch)
    assert moved(model, flat, batch, "rescale", "0, 2").invariant is None, "the loss does not feel these weights at all"
    lost = lambda call, batch: examples.loss(call, batch) * float("nan")
    assert moved(model, lost, batch, "rescale", "0, 2").invariant is None
