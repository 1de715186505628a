"""Batches that are cut up: losses that are no means, that draw random numbers, and batches of what cannot be compared.

The oracle of sums is the definition: the batch's gradient, summed, over as many examples as a piece of it holds.
"""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from learnmech.probes import GradientNoiseScale, Recorder, every
from learnmech.probes.noise.additive import Additive, compared

B, PIECES = 16, 4


def batches(steps, noise=1.0):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(B, 3, generator=generator)
        yield x, x.sum(1, keepdim=True) + noise * torch.randn(B, 1, generator=generator)


def train(spool, loss, data, **settings):
    torch.manual_seed(0)
    model = nn.Linear(3, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    probe = GradientNoiseScale(every(1), **settings)
    with Recorder(model, optimizer, loss, [probe], sink=spool.url, strict=True) as recorder:
        for batch in data:
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()
            recorder.after_step(batch)
    return spool(), model


def test_a_summed_loss_has_one_noise_and_not_two(spool):
    """Of pieces of 4 examples: 4 times as much as a mean's, squared. Two batches and one must agree: it is a law."""

    def summed(model, batch):
        return (model(batch[0]) - batch[1]).square().sum()

    data = list(batches(300))
    run, model = train(spool, summed, data, source="split", per_layer=False)
    x, y = (torch.cat(column) for column in zip(*data, strict=True))
    rows = 2 * (model(x) - y).detach() * x
    trace = (B // PIECES) ** 2 * float(rows.var(0).sum())
    for observable in ("noise_trace", "noise_trace_between"):
        values = np.array(list(run.values(observable).values()))
        error = values.std() / math.sqrt(len(values))
        assert error < 0.06 * trace
        assert abs(values.mean() - trace) < 4 * error, (observable, values.mean(), trace)


def test_two_batches_agree_as_the_definition_has_it(spool):
    """B / 2 |g_A - g_B|^2, to rounding."""

    def mean(model, batch):
        return (model(batch[0]) - batch[1]).square().mean()

    data = list(batches(3))
    run, model = train(spool, mean, data, source="split", per_layer=False)
    found = [torch.autograd.grad(mean(model, batch), list(model.parameters()))[0] for batch in data]
    truth = [B / 2 * float((a - b).square().sum()) for a, b in zip(found[1:], found, strict=False)]
    assert list(run.values("noise_trace_between").values()) == pytest.approx(truth, rel=1e-5)


def test_sparse_batches_are_cut_and_not_compared(spool):
    def sparse(model, batch):
        return (torch.sparse.mm(batch["x"], model.weight.T) - batch["y"]).square().mean()

    def cut(batch, pieces):
        parts = zip(batch["x"].to_dense().chunk(pieces), batch["y"].chunk(pieces), strict=True)
        return [{"x": x.to_sparse(), "y": y} for x, y in parts]

    data = [{"x": x.to_sparse(), "y": y} for x, y in batches(4)]
    run, _ = train(spool, sparse, data, split=cut)
    assert {m.status for _, m in run.all("noise_trace")} == {"ok"}
    assert list(run.values("noise_trace_between")) == [1, 2, 3]


def noisy_loss(model, batch):
    x = batch[0] + 0.3 * torch.randn_like(batch[0])
    return (model(x) - batch[1]).square().mean()


def test_a_loss_that_draws_random_numbers_is_cut_for_that_reason(spool):
    run, _ = train(spool, noisy_loss, batches(4))
    assert {(m.status, m.method) for _, m in run.all("noise_trace")} == {("ok", "split_batch_in_4")}
    (notice,) = run.of_kind("probe_notice")
    assert "draws random numbers of its own" in notice.message
    assert 'source="examples"' in notice.message
    assert "units=" not in notice.message


def verdict(loss):
    """What the gradients of a loss say, with other random numbers each time."""
    torch.manual_seed(0)
    model, (batch,) = nn.Linear(3, 1, bias=False), batches(1)
    pieces = [tuple(x[k:][:4] for x in batch) for k in range(0, B, 4)]

    def gradient(batch, number):
        return list(torch.autograd.grad(loss(model, batch), list(model.parameters())))

    found = [gradient(piece, 0) for piece in pieces]
    return compared(gradient, batch, pieces, found, [1 / 4] * 4, precise=True)


def attending(drop):
    """A mean over tokens of which pieces hold unlike numbers, behind an attention that may drop out."""

    def loss(model, batch):
        x = batch[0][:, None, None]
        error = (model(scaled_dot_product_attention(x, x, x, dropout_p=drop)[:, 0, 0]) - batch[1]).square()[:, 0]
        counts = 1 + (10 * batch[1][:, 0].abs()).floor()
        return (error * counts).sum() / counts.sum()

    return loss


def test_attention_draws_only_where_it_drops_out():
    assert verdict(attending(0.0)) is Additive.NO
    assert verdict(noisy_loss) is Additive.DRAWN
    assert verdict(lambda model, batch: (model(batch[0]) - batch[1]).square().mean()) is Additive.YES
