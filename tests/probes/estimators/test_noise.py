"""Noise estimates against closed forms and against all per-example gradients of a network."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from learnmech.observables import Status
from learnmech.probes.estimators import noise_between, noise_from_pieces

G = torch.tensor([0.3, -0.2, 0.5, 0.0, 0.1, 0.05], dtype=torch.float64)
SIGMA = torch.tensor([1.0, 0.5, 2.0, 0.1, 1.0, 0.4], dtype=torch.float64)  # a diagonal covariance
GRAD_SQ, TRACE = G.square().sum().item(), SIGMA.sum().item()


def pieces_of(sizes, generator, signal=1.0):
    """Mean gradients of pieces of Gaussian examples: each drawn example by example."""
    examples = signal * G + SIGMA.sqrt() * torch.randn(sum(sizes), len(G), generator=generator, dtype=torch.float64)
    return [part.mean(dim=0) for part in examples.split(list(sizes))]


def within_three_errors(samples, truth):
    values = torch.tensor(samples, dtype=torch.float64)
    error = values.std() / math.sqrt(len(values))
    assert abs(values.mean() - truth) <= 3 * error, (values.mean().item(), truth, error.item())
    return error.item()


@pytest.mark.parametrize("sizes", [(8, 8), (8, 8, 3), (4, 4, 4, 4), (15, 1)])
def test_unbiased_for_gaussian_examples(sizes):
    generator = torch.Generator().manual_seed(sum(sizes) + len(sizes))
    found = []
    for _ in range(500):
        first, *rest = pieces_of(sizes, generator)
        # cut over two tensors, as gradients of parameters are
        found.append(noise_from_pieces([[p[:2], p[2:].view(2, 2)] for p in (first, *rest)], sizes))
    within_three_errors([f.grad_sq_norm for f in found], GRAD_SQ)
    error = within_three_errors([f.noise_trace for f in found], TRACE)
    assert error < 0.1 * TRACE
    assert found[0].batch_size == sum(sizes)


def test_pieces_weighed_equally_would_be_wrong():
    # The mistake this guards against: batches of 15 and 1 averaged as if alike.
    generator = torch.Generator().manual_seed(0)
    found = [noise_from_pieces([[p] for p in pieces_of((15, 1), generator)], (8, 8)).noise_trace for _ in range(500)]
    mean = sum(found) / len(found)
    assert abs(mean / TRACE - 1) > 1


def test_pieces_of_unequal_units_and_batches_of_them():
    """Two examples in each piece; tr Sigma of an example is that of a token over its mean number of tokens."""
    generator, tokens = torch.Generator().manual_seed(4), (2, 30, 7, 9)
    found, between, alike = [], [], []
    for _ in range(500):
        pieces = [[p] for p in pieces_of(tokens, generator)]
        found.append(noise_from_pieces(pieces, (2,) * 4, units=tokens))
        alike.append(noise_from_pieces(pieces, (2,) * 4).noise_trace)
        a, b = (pieces_of((count,), generator) for count in (40, 12))
        between.append(noise_between(a, b, (6, 5), (40, 12)))
    within_three_errors([f.grad_sq_norm for f in found], GRAD_SQ)
    within_three_errors([f.noise_trace for f in found], TRACE * 8 / sum(tokens))
    within_three_errors(between, TRACE * 11 / 52)
    assert sum(alike) / 500 > 1.5 * TRACE * 8 / sum(tokens), "each piece as if it held as many"
    assert found[0].batch_size == 8


def test_negative_estimates_are_kept():
    """With a weak signal many estimates of |G|^2 are negative; cut off at zero the mean is far too large."""
    generator = torch.Generator().manual_seed(1)
    found = [
        noise_from_pieces([[p] for p in pieces_of((8, 8), generator, signal=0.1)], (8, 8)).grad_sq_norm
        for _ in range(500)
    ]
    within_three_errors(found, 0.01 * GRAD_SQ)
    assert sum(value < 0 for value in found) > 150
    clamped = sum(max(value, 0.0) for value in found) / len(found)
    assert clamped > 5 * 0.01 * GRAD_SQ


def test_groups_of_tensors_are_measured_apart():
    generator = torch.Generator().manual_seed(2)
    pieces = [[p[:2], p[2:5], p[5:]] for p in pieces_of((8, 8, 3), generator)]
    both, last = noise_from_pieces(pieces, (8, 8, 3), groups=[[0, 2], [1]])
    assert last == noise_from_pieces([[p[1]] for p in pieces], (8, 8, 3))
    whole = noise_from_pieces(pieces, (8, 8, 3))
    assert both.noise_trace + last.noise_trace == pytest.approx(whole.noise_trace, rel=1e-12)
    assert both.grad_sq_norm + last.grad_sq_norm == pytest.approx(whole.grad_sq_norm, rel=1e-12)


def test_two_sizes_are_the_published_formula():
    # McCandlish et al. 2018, (A.2)-(A.3), with B_big the batch and B_small one of two equal halves.
    generator = torch.Generator().manual_seed(3)
    halves = pieces_of((8, 8), generator)
    big = ((halves[0] + halves[1]) / 2).square().sum().item()
    small = (halves[0].square().sum().item() + halves[1].square().sum().item()) / 2
    found = noise_from_pieces([[p] for p in halves], (8, 8))
    assert found.grad_sq_norm == pytest.approx((16 * big - 8 * small) / (16 - 8), rel=1e-12)
    assert found.noise_trace == pytest.approx((small - big) / (1 / 8 - 1 / 16), rel=1e-12)


def test_strong_signal_costs_no_digits_in_float32():
    # |G|^2 is 1e10 times tr Sigma / B: squares in float32 would leave nothing of the noise.
    generator = torch.Generator().manual_seed(4)
    noise = torch.randn(4, 1000, generator=generator, dtype=torch.float64)
    pieces = [(1000.0 + part) for part in noise]
    exact = noise_from_pieces([[p] for p in pieces], (1, 1, 1, 1)).noise_trace
    single = noise_from_pieces([[p.float()] for p in pieces], (1, 1, 1, 1)).noise_trace
    assert single == pytest.approx(exact, rel=1e-4)


def test_independent_batches_are_unbiased():
    generator = torch.Generator().manual_seed(5)
    found = []
    for _ in range(500):
        a, b = pieces_of((12,), generator), pieces_of((5,), generator)
        found.append(noise_between(a, b, (12, 5)))
    within_three_errors(found, TRACE)
    assert noise_between(a, b, (12, 12)) == pytest.approx(6 * (a[0] - b[0]).square().sum().item())  # B/2 |a - b|^2


class Net:
    """A small network with 48 examples and the gradient of each."""

    def __init__(self):
        torch.manual_seed(6)
        self.model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
        self.x, self.y = torch.randn(48, 5, dtype=torch.float64), torch.randint(0, 3, (48,))
        each = [self.gradient([i]) for i in range(48)]
        self.rows = torch.stack([torch.cat([t.flatten() for t in g]) for g in each])
        self.mean_sq = self.rows.mean(dim=0).square().sum().item()
        self.trace = self.rows.var(dim=0, unbiased=True).sum().item()

    def gradient(self, indices):
        loss = cross_entropy(self.model(self.x[indices]), self.y[indices])
        return [g.detach() for g in torch.autograd.grad(loss, list(self.model.parameters()))]


@pytest.fixture(scope="module")
def net():
    return Net()


def test_one_example_pieces_of_everything_are_exact(net):
    found = noise_from_pieces([net.gradient([i]) for i in range(48)], [1] * 48, population=48)
    assert found.noise_trace == pytest.approx(net.trace, rel=1e-12)
    assert found.grad_sq_norm == pytest.approx(net.mean_sq, rel=1e-12)


def test_batches_of_a_network_without_replacement(net):
    """All per-example gradients are known: batches of 19, in pieces of 8, 8 and 3, must average to the exact values."""
    generator = torch.Generator().manual_seed(7)
    found, between, uncorrected = [], [], []
    for _ in range(400):
        order = torch.randperm(48, generator=generator)
        pieces = [net.gradient(part) for part in order[:19].split([8, 8, 3])]
        found.append(noise_from_pieces(pieces, (8, 8, 3), population=48))
        uncorrected.append(noise_from_pieces(pieces, (8, 8, 3)).grad_sq_norm)
        between.append(noise_between(net.gradient(order[:19]), net.gradient(order[19:29]), (19, 10)))
    within_three_errors([f.noise_trace for f in found], net.trace)
    within_three_errors([f.grad_sq_norm for f in found], net.mean_sq)
    within_three_errors(between, net.trace)
    # without `population` the estimate is of a population the 48 are a sample of: lower by tr Sigma / 48
    within_three_errors(uncorrected, net.mean_sq - net.trace / 48)


def test_bad_input_is_explained():
    g = [torch.ones(2)]
    with pytest.raises(ValueError, match="expected two or more"):
        noise_from_pieces([g], [4])
    with pytest.raises(ValueError, match="a size for each"):
        noise_from_pieces([g, g], [4])
    with pytest.raises(ValueError, match="one example or more"):
        noise_from_pieces([g, g], [4, 0])
    with pytest.raises(ValueError, match="cannot come from 7"):
        noise_from_pieces([g, g], [4, 4], population=7)
    with pytest.raises(ValueError, match="positive numbers"):
        noise_between(g, g, (0, 3))
    with pytest.raises(ValueError, match="hold"):
        noise_from_pieces([g, g], [4, 4], units=[3.0, 0.0])
    with pytest.raises(ValueError, match="hold"):
        noise_between(g, g, (3, 3), (0.0, 2.0))
    broken = noise_from_pieces([[torch.tensor([math.nan, 0.0])], g], [1, 1])
    assert math.isnan(broken.noise_trace)
    assert (broken.status, broken.reason) == (Status.NON_FINITE, "the gradient is not finite")
