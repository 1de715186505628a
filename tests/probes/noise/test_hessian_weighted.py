"""G'HG and tr(H Sigma) from three pieces: unbiased, with an interval of their ratio that covers the truth.

The oracle is every example's gradient and Hessian as dense float64 arrays, by torch itself, and closed forms where
there are any: none of it multiplies as the estimator does.
"""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from learnmech.probes.curvature.space import Space
from learnmech.probes.estimators import noise_from_pieces
from learnmech.probes.estimators.ratio import ratio_now
from learnmech.probes.noise.hessian_weighted import weighted_parts
from learnmech.probes.noise.window import RESOLVED, ExponentialWindow

REPEATS = 500
PAIRS = 24


class Dense:
    """A matrix and a gradient in the place of a piece's operator."""

    error = 0.0

    def __init__(self, matrix, gradient):
        self.space = Space(len(gradient), gradient.dtype, gradient.device)
        self._matrix, self._gradient = matrix, gradient

    def gradient(self):
        return self._gradient

    def matvec(self, vector):
        return self._matrix @ vector

    def release(self):
        pass


class Examples:
    """Gradients [n, p] and Hessians [n, p, p] of all examples; what they say exactly, and draws from them."""

    def __init__(self, gradients, hessians, seed=0):
        self.gradients, self.hessians = gradients, hessians
        self.generator = torch.Generator().manual_seed(seed)
        self.mean, self.matrix = gradients.mean(dim=0), hessians.mean(dim=0)
        self.apart, self.other = gradients - self.mean, hessians - self.matrix
        self.square = float(self.mean @ self.matrix @ self.mean)
        # with replacement, the covariance is the one with divisor n
        self.trace = float((self.matrix * (self.apart.T @ self.apart / len(gradients))).sum())

    def pieces(self, sizes, *, same=False):
        """Draw a batch and cut it; `same` gives the Hessian of the whole batch to every piece."""
        chosen = torch.randint(len(self.gradients), (sum(sizes),), generator=self.generator)
        matrix = self.hessians[chosen].mean(dim=0) if same else None
        cut = chosen.split(list(sizes))
        return [
            Dense(self.hessians[i].mean(dim=0) if matrix is None else matrix, self.gradients[i].mean(dim=0))
            for i in cut
        ]

    def estimates(self, sizes, repeats, **settings):
        """[repeats, 2]: estimates of tr(H Sigma) and G'HG."""
        found = [weighted_parts(self.pieces(sizes, **settings), sizes) for _ in range(repeats)]
        return torch.tensor([[f.trace, f.square] for f in found], dtype=torch.float64)


@pytest.fixture(scope="module", params=["tanh", "attention"])
def network(request):
    """A small network with random and with learnable labels: gradients and Hessians of 64 examples."""
    torch.manual_seed(0)
    if request.param == "tanh":
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
        x = torch.randn(64, 4, dtype=torch.float64)
    else:
        layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, activation="gelu", batch_first=True)
        model = nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 3)).double()
        x = torch.randn(64, 3, 4, dtype=torch.float64)
    y = (x.reshape(64, -1)[:, 0] > 0).long() + (torch.rand(64) > 0.7).long()
    names, shapes = zip(*((name, p.shape) for name, p in model.named_parameters()), strict=True)
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    def loss(flat, x, y):
        pieces = flat.split([shape.numel() for shape in shapes])
        tensors = {n: piece.view(shape) for n, piece, shape in zip(names, pieces, shapes, strict=True)}
        return cross_entropy(functional_call(model, tensors, (x[None],)), y[None])

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        rows = vmap(grad(loss), (None, 0, 0))(flat, x, y)
        matrices = torch.stack([hessian(lambda w, i=i: loss(w, x[i], y[i]), flat, vectorize=True) for i in range(64)])
    return Examples(rows, matrices)


@pytest.fixture(scope="module")
def quadratic():
    """An indefinite quadratic with Gaussian gradients, of 4000 examples that all have the same Hessian."""
    generator = torch.Generator().manual_seed(3)
    curvatures = torch.tensor([5.0, 2.0, 1.0, 0.5, 0.1, -0.3], dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    mixing = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    rows = 1.0 + torch.randn(4000, 6, generator=generator, dtype=torch.float64) @ mixing
    matrix = basis @ torch.diag(curvatures) @ basis.T
    return Examples(rows, matrix.expand(4000, 6, 6))


def test_both_parts_are_unbiased(network):
    """Pieces of unequal sizes, drawn 1000 times."""
    found = network.estimates((5, 4, 3), 1000)
    error = found.std(dim=0) / math.sqrt(len(found))
    for mean, exact, sigma in zip(found.mean(dim=0), (network.trace, network.square), error, strict=True):
        assert abs(float(mean) - exact) < 3 * float(sigma)
        assert float(sigma) < 0.2 * abs(exact)


def test_the_hessian_of_the_same_examples_would_be_biased(network):
    """What the module says of it: 2 G'E[dh dg] / n and E[dg'dh dg] / n, here tens of per cent."""
    found = network.estimates((4, 4, 4), 1000, same=True)
    error = found.std(dim=0) / math.sqrt(len(found))
    shift = torch.einsum("nij,nj->i", network.other, network.apart) / len(network.apart)
    own = torch.einsum("ni,nij,nj->", network.apart, network.other, network.apart) / len(network.apart)
    for mean, exact, bias, sigma in zip(
        found.mean(dim=0),
        (network.trace, network.square),
        (float(own) / 12, 2 * float(network.mean @ shift) / 12),
        error,
        strict=True,
    ):
        assert abs(float(mean) - exact - bias) < 3 * float(sigma)
        assert abs(bias) > 4 * float(sigma)


def coverage(examples):
    """The share of 500 intervals, of windows of 24 batches of 48 examples, that hold the truth."""
    truth = examples.trace / examples.square
    covered = 0
    for _ in range(REPEATS):
        window = ExponentialWindow(25.0)
        for trace, square in examples.estimates((16, 16, 16), PAIRS).tolist():
            window.append(trace, square)
        ratio = ratio_now(window.moments(), RESOLVED)
        inside = ratio.lower <= truth <= ratio.upper
        covered += inside if ratio.bounded else not ratio.lower < truth < ratio.upper
    return covered / REPEATS


def test_interval_covers_the_truth_of_a_gaussian_quadratic(quadratic):
    """Three standard errors about 95 %."""
    assert 0.92 <= coverage(quadratic) <= 0.98


@pytest.mark.parametrize("network", ["tanh"], indirect=True)
def test_interval_covers_the_truth_of_a_network(network):
    assert 0.92 <= coverage(network) <= 0.98


def test_with_a_multiple_of_the_identity_it_is_the_simple_noise_scale():
    """Three pieces of equal size: the mean over pairs is the variance between three, so every digit agrees."""
    rows = torch.randn(3, 50, dtype=torch.float64) + 0.1
    sizes = (7, 7, 7)
    simple = noise_from_pieces([[row] for row in rows], sizes, population=500)
    operators = [Dense(3.0 * torch.eye(50, dtype=torch.float64), row) for row in rows]
    found = weighted_parts(operators, sizes, population=500)
    assert found.trace == pytest.approx(3 * simple.noise_trace, rel=1e-12)
    assert found.square == pytest.approx(3 * simple.grad_sq_norm, rel=1e-12)
    assert found.trace / found.square == pytest.approx(simple.noise_trace / simple.grad_sq_norm, rel=1e-12)


def test_without_replacement_all_orders_of_a_data_set_average_to_its_own_numbers():
    """Every one of the 6! orders of six examples in pieces of 3, 2 and 1: the covariance has divisor n - 1."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    matrix = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    matrix = matrix + matrix.T
    found = []
    for order in itertools.permutations(range(6)):
        pieces = rows[list(order)].split([3, 2, 1])
        parts = weighted_parts([Dense(matrix, p.mean(dim=0)) for p in pieces], (3, 2, 1), population=6)
        found.append((parts.trace, parts.square))
    trace, square = torch.tensor(found, dtype=torch.float64).mean(dim=0).tolist()
    mean = rows.mean(dim=0)
    assert trace == pytest.approx(float((matrix * torch.cov(rows.T)).sum()), rel=1e-10)
    assert square == pytest.approx(float(mean @ matrix @ mean), rel=1e-10)


def test_a_signal_far_above_the_noise_costs_no_digits():
    """The spread of (1e6 + e_k) is that of e_k."""
    noise = torch.randn(3, 20, dtype=torch.float64)
    matrix = torch.diag(torch.linspace(-1.0, 2.0, 20, dtype=torch.float64))
    far = weighted_parts([Dense(matrix, 1e6 + row) for row in noise], (4, 4, 4))
    near = weighted_parts([Dense(matrix, row) for row in noise], (4, 4, 4))
    assert far.trace == pytest.approx(near.trace, rel=1e-8)


@pytest.mark.parametrize(("count", "sizes"), [(2, (4, 4)), (3, (4, 4)), (3, (4, 4, 0))])
def test_bad_pieces_are_told(count, sizes):
    row = torch.ones(2)
    with pytest.raises(ValueError, match="expected 3"):
        weighted_parts([Dense(torch.eye(2), row)] * count, sizes)
