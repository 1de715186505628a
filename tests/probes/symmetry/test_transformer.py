"""The symmetries of transformers are found in every layout, hold in every arithmetic, and what breaks them is refused.

Two oracles share nothing with the code: the identities written out with slices of the weights, and the loss itself at
weights that were transformed by a random matrix.
"""

import pytest
import torch

DOUBLE, SINGLE = torch.float64, torch.float32
GATED = ["blocks.0.up, blocks.0.down", "blocks.1.up, blocks.1.down"]


@pytest.mark.parametrize(
    ("dtype", "autocast", "most"), [(DOUBLE, False, 1e-14), (SINGLE, False, 1e-6), (SINGLE, True, 1e-2)]
)
def test_every_form_is_found_and_holds_in_every_arithmetic(dtype, autocast, most, transformer, tokens, residuals):
    found = residuals(transformer(dtype), tokens.loss, tokens.batch(), autocast=autocast)
    assert found.holding("gated") == GATED
    assert found.holding("value_output") == [f"blocks.{i}.attention.wv, blocks.{i}.attention.wo" for i in range(2)]
    assert found.holding("query_key_pair") == [
        f"blocks.{i}.attention.wq, blocks.{i}.attention.wk, halves" for i in range(2)
    ]
    assert found.holding("query_key") == [], "rotary positions leave no more than a scale per pair"
    assert found.holding("shift") == ["head"]
    assert found.holding("residual_stream") == ["stream of 32"]
    assert found.holding("rescale") == ["norm, head"], "SiLU is not homogeneous: the gate balances nothing"
    if not autocast:  # one inner product of bfloat16 may be small by chance: therefore certificates take several looks
        assert not found.holding("scale")
    for kind in ("gated", "value_output", "query_key_pair", "shift"):
        assert found.largest(kind) < most
    assert found.least_refused("gated") > 0.05
    assert found.least_refused("query_key") > 0.05
    assert found.least_refused("query_key_pair") > 0.05
    assert found.largest("residual_stream") < 1e-4


def test_the_residual_stream_balances_as_well_as_the_epsilon_lets_it(transformer, tokens, residuals):
    fine = residuals(transformer(eps=1e-12), tokens.loss, tokens.batch()).largest("residual_stream")
    coarse = residuals(transformer(eps=1e-5), tokens.loss, tokens.batch()).largest("residual_stream")
    assert fine < 1e-12
    assert 1e-8 < coarse < 1e-5
    tied = residuals(transformer(tied=True), tokens.loss, tokens.batch())
    assert not tied.holding("residual_stream"), "the tied output writes to the logits, not to the stream"


@pytest.mark.parametrize(
    ("settings", "kind", "keys"),
    [
        ({"rope": ""}, "query_key", "wq, blocks.0.attention.wk"),
        ({"rope": "", "bias": True}, "query_key", "wq, blocks.0.attention.wk"),
        ({"rope": "neighbours"}, "query_key_pair", "wq, blocks.0.attention.wk, neighbours"),
        ({"shared": 2}, "query_key_pair", "wq, blocks.0.attention.wk, halves"),
        ({"shared": 4, "rope": ""}, "query_key", "wq, blocks.0.attention.wk"),
        ({"rope": "", "packed": "blocks", "bias": True}, "query_key", "qkv[q], blocks.0.attention.qkv[k]"),
        ({"packed": "blocks", "shared": 2}, "query_key_pair", "qkv[q], blocks.0.attention.qkv[k], halves"),
        ({"rope": "", "packed": "heads", "bias": True}, "query_key", "qkv[q of 4], blocks.0.attention.qkv[k of 4]"),
    ],
)
def test_attention_is_found_in_every_layout(settings, kind, keys, transformer, tokens, residuals):
    found = residuals(transformer(**settings), tokens.loss, tokens.batch())
    assert f"blocks.0.attention.{keys}" in found.holding(kind)
    values = keys.split(",")[0].replace("wq", "wv").replace("[q", "[v")
    assert found.holding("value_output")[0].startswith(f"blocks.0.attention.{values}, blocks.0.attention.wo")
    assert len(found.holding("value_output")) == 2
    assert found.holding("gated") == GATED


def test_normalized_queries_are_scale_invariant_head_by_head(transformer, tokens, residuals):
    found = residuals(transformer(norm=True), tokens.loss, tokens.batch())
    heads = [f"blocks.{i}.attention.{w} in 4 groups" for i in range(2) for w in ("wk", "wq")]
    assert set(heads) <= set(found.holding("scale"))
    assert not found.holding("query_key")
    assert not found.holding("query_key_pair")
    assert all(label.split(" ")[0].endswith(("wk", "wq")) for label in found.holding("scale"))


def test_the_identities_written_out(transformer, tokens):
    """Slices and plain products, head by head: what the code gets by its own way of cutting is what is said here."""
    model = transformer(rope="", shared=2, bias=True)
    tokens.loss(model, tokens.batch()).backward()
    own = model.blocks[1].attention
    (q, gq), (k, gk), (v, gv) = (
        (torch.cat([w.weight.data, w.bias.data[:, None]], 1), torch.cat([w.weight.grad, w.bias.grad[:, None]], 1))
        for w in (own.wq, own.wk, own.wv)
    )
    o, go = own.wo.weight.data, own.wo.weight.grad
    for head in range(2):  # of keys and values; each belongs to two of queries
        one = slice(8 * head, 8 * head + 8)
        both = [slice(16 * head, 16 * head + 8), slice(16 * head + 8, 16 * head + 16)]
        torch.testing.assert_close(gv[one] @ v[one].T, sum(o[:, s].T @ go[:, s] for s in both), rtol=1e-11, atol=1e-15)
        torch.testing.assert_close(sum(gq[s] @ q[s].T for s in both), k[one] @ gk[one].T, rtol=1e-11, atol=1e-15)


def test_the_loss_does_not_feel_what_the_identities_are_about(transformer, tokens):
    """The finite symmetry, of which the identity on gradients is the infinitesimal form: any invertible M."""
    model = transformer(rope="", bias=True)
    own, batch = model.blocks[0].attention, tokens.batch()
    with torch.no_grad():
        before = float(tokens.loss(model, batch))
        m = torch.randn(8, 8, dtype=DOUBLE)
        own.wv.weight[:8], own.wv.bias[:8] = m @ own.wv.weight[:8], m @ own.wv.bias[:8]
        assert abs(float(tokens.loss(model, batch)) - before) > 1e-4
        own.wo.weight[:, :8] = own.wo.weight[:, :8] @ m.inverse()
        assert float(tokens.loss(model, batch)) == pytest.approx(before, rel=1e-12)
        own.wq.weight[:8], own.wq.bias[:8] = m @ own.wq.weight[:8], m @ own.wq.bias[:8]
        own.wk.weight[:8], own.wk.bias[:8] = m.inverse().T @ own.wk.weight[:8], m.inverse().T @ own.wk.bias[:8]
        assert float(tokens.loss(model, batch)) == pytest.approx(before, rel=1e-12)


def test_attention_of_torch_and_layers_that_are_kept_transposed(tokens, residuals):
    class Conv1D(torch.nn.Module):
        """GPT-2's linear layer."""

        def __init__(self, nf, nx):
            super().__init__()
            self.nf = nf
            self.weight = torch.nn.Parameter(0.3 * torch.randn(nx, nf))
            self.bias = torch.nn.Parameter(0.1 * torch.randn(nf))

        def forward(self, x):
            return x @ self.weight + self.bias

    class Both(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(29, 32)
            self.place = torch.nn.Parameter(torch.randn(16, 32))
            self.norm = torch.nn.LayerNorm(32)
            self.attn = torch.nn.Module()
            self.attn.num_heads = 4
            self.attn.c_attn, self.attn.c_proj = Conv1D(96, 32), Conv1D(32, 32)
            self.other = torch.nn.MultiheadAttention(32, 4, batch_first=True)
            self.norm_f = torch.nn.LayerNorm(32)
            self.head = torch.nn.Linear(32, 29)

        def forward(self, tokens):
            x = self.embed(tokens) + self.place
            q, k, v = (
                t.view(*tokens.shape, 4, 8).transpose(1, 2) for t in self.attn.c_attn(self.norm(x)).split(32, -1)
            )
            y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.attn.c_proj(y.transpose(1, 2).flatten(2))
            y = torch.nn.functional.layer_norm(x, (32,))
            x = x + self.other(y, y, y, need_weights=False)[0]
            return self.head(self.norm_f(x))

    torch.manual_seed(0)
    model = Both().double()
    torch.nn.init.normal_(model.other.in_proj_bias)
    found = residuals(model, tokens.loss, tokens.batch())
    assert found.holding("query_key") == ["attn.c_attn[q], attn.c_attn[k]", "other.q, other.k"]
    assert found.holding("value_output") == ["attn.c_attn[v], attn.c_proj", "other.v, other.out_proj"]
    assert found.holding("residual_stream") == ["stream of 32"], "positions are among the writers"
    shifts = found.holding("shift")
    assert {"embed", "attn.c_proj", "other.out_proj", "head"} <= set(shifts), "LayerNorm takes means out of the stream"
    assert not {"attn.c_attn", "other.q", "other.v"} & set(shifts)
    assert "other.k.bias" not in shifts, "the softmax ignores keys' biases altogether: there is no gradient to look at"
