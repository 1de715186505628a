"""Estimates from what pieces contribute to a gradient.

The oracles are closed forms (Gaussian gradients of known mean and covariance) and all per-example gradients of a
network, each computed by itself; neither knows of contributions, weights or sums.
"""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from learnmech.observables import Status
from learnmech.probes.estimators import noise_from_pieces
from learnmech.probes.noise.contributions import Sums, estimates, packed

G = torch.tensor([0.3, -0.2, 0.5, 0.0, 0.1, 0.05], dtype=torch.float64)
SIGMA = torch.tensor([1.0, 0.5, 2.0, 0.1, 1.0, 0.4], dtype=torch.float64)  # a diagonal covariance
GRAD_SQ, TRACE = G.square().sum().item(), SIGMA.sum().item()
REPEATS = 500


def parts_of(pieces, weights, units, *, examples=None, **settings):
    """The estimate from mean gradients g_k of pieces: [K, numbers]."""
    weights, units = (torch.as_tensor(value, dtype=torch.float64) for value in (weights, units))
    shares = weights / weights.sum()
    contributions = shares[:, None] * pieces
    sums = Sums(1)
    count = None if examples is None else torch.tensor(examples)
    sums.add_pieces(contributions.square().sum(dim=1)[None], weight=weights, units=units, examples=count)
    whole = contributions.sum(dim=0).square().sum().reshape(1)
    (found,) = estimates(sums.pack().tolist(), whole.tolist(), **settings)
    return found


def within_three_errors(samples, truth, label=""):
    values = torch.tensor(samples, dtype=torch.float64)
    error = values.std().item() / math.sqrt(len(values))
    distance = (values.mean().item() - truth) / error
    print(f"{label}: mean {values.mean().item():.5g}, truth {truth:.5g}, {distance:+.2f} standard errors")
    assert abs(distance) <= 3, (label, values.mean().item(), truth, error)
    return error


DESIGNS = {
    "four micro-batches": ((1, 1, 1, 1), (8, 8, 8, 8)),
    "mean over unequal micro-batches": ((8, 8, 3), (8, 8, 3)),
    "processes with unequal batches, averaged as they are": ((1, 1, 1), (8, 8, 3)),
    "weights against sizes": ((1, 2, 5), (16, 4, 2)),
    "examples": ((1,) * 19, (1,) * 19),
}


@pytest.mark.parametrize("signal", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("design", DESIGNS)
def test_unbiased_for_gaussian_gradients(design, signal):
    weights, units = DESIGNS[design]
    generator = torch.Generator().manual_seed(len(design) + int(10 * signal))
    found = []
    for _ in range(REPEATS):
        each = signal * G + SIGMA.sqrt() * torch.randn(sum(units), len(G), generator=generator, dtype=torch.float64)
        pieces = torch.stack([part.mean(dim=0) for part in each.split(list(units))])
        found.append(parts_of(pieces, weights, units))
    within_three_errors([part.grad_sq_norm for part in found], signal**2 * GRAD_SQ, f"|G|^2, {design}")
    within_three_errors([part.noise_trace for part in found], TRACE, f"tr Sigma, {design}")
    assert {part.batch_size for part in found} == {sum(units)}


def test_noise_that_differs_between_pieces_leaves_the_signal_unbiased():
    """Products of different pieces know nothing of Sigma; |g|^2 less the mean noise, the other estimate, does."""
    generator = torch.Generator().manual_seed(1)
    units, spread = (8, 8, 3), torch.tensor([1.0, 1.0, 6.0], dtype=torch.float64)
    found, other = [], []
    for _ in range(REPEATS):
        noise = torch.randn(3, len(G), generator=generator, dtype=torch.float64) * SIGMA.sqrt()
        pieces = G + noise * (spread / torch.tensor(units).sqrt())[:, None]
        part = parts_of(pieces, units, units)
        found.append(part.grad_sq_norm)
        mean = (pieces * torch.tensor(units)[:, None]).sum(dim=0) / 19
        other.append(mean.square().sum().item() - part.noise_trace / 19)
    error = within_three_errors(found, GRAD_SQ, "|G|^2")
    assert abs(sum(other) / REPEATS - GRAD_SQ) > 5 * error


def test_a_strong_signal_adds_no_noise_to_the_trace():
    """With other weights b_k than c_k (1 - c_k) / n_k the estimate of tr Sigma scatters as |G|."""
    generator = torch.Generator().manual_seed(2)
    weights = units = torch.tensor([8.0, 8.0, 3.0], dtype=torch.float64)
    scatter = {}
    for signal in (0.0, 100.0):
        found, equal = [], []
        for _ in range(REPEATS):
            noise = torch.randn(3, len(G), generator=generator, dtype=torch.float64) * SIGMA.sqrt()
            pieces = signal * G + noise / units.sqrt()[:, None]
            part = parts_of(pieces, weights, units)
            found.append(part.noise_trace)
            equal.append((units * (pieces.square().sum(dim=1) - part.grad_sq_norm)).mean().item())  # b_k = 1/K
        scatter[signal] = [torch.tensor(values).std().item() for values in (found, equal)]
    assert scatter[100.0][0] == pytest.approx(scatter[0.0][0], rel=0.1)
    assert scatter[100.0][1] > 5 * scatter[0.0][1]
    # two degrees of freedom: Var = 2 tr Sigma^2 / (K - 1), the least that an invariant estimate can have
    assert scatter[0.0][0] == pytest.approx(math.sqrt(SIGMA.square().sum().item()), rel=0.1)


def test_tokens_of_one_document_may_go_together():
    """All tokens of a document share its noise. What comes out is still what the noise of an update falls with.

    Truth: B times the variance of the update's gradient sum_i t_i e_i / sum_i t_i, over B documents of t_i tokens.
    """
    generator = torch.Generator().manual_seed(8)
    lengths = torch.randint(1, 9, (4 * REPEATS, 40), generator=generator).double()
    e = torch.randn(4 * REPEATS, 40, len(G), generator=generator, dtype=torch.float64) * SIGMA.sqrt()
    shares = lengths / lengths.sum(dim=1, keepdim=True)
    truth = 40 * (shares.square().sum(dim=1) * TRACE).mean().item()
    found = []
    for repeat in range(4 * REPEATS):
        tokens = lengths[repeat].view(8, 5).sum(dim=1)
        pieces = G + (lengths[repeat, :, None] * e[repeat]).view(8, 5, -1).sum(dim=1) / tokens[:, None]
        found.append(parts_of(pieces, tokens, tokens, examples=[5] * 8).noise_trace)
    # the tokens of a micro-batch are known to 1 / sqrt(20): unequal pieces are weighed almost, not quite, as they are
    assert sum(found) / len(found) == pytest.approx(truth, rel=0.03)
    assert truth > 1.2 * TRACE


def test_tokens_of_documents():
    """The loss is a mean over all tokens of the update; the noise scale comes out in documents.

    Truth: with Sigma of one token and m tokens in a document on average, tr Sigma of a document is that over m.
    """
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, 9, (REPEATS, 4, 5), generator=generator)  # tokens of 5 documents in 4 micro-batches
    found = []
    for documents in lengths:
        tokens = documents.sum(dim=1)
        noise = torch.randn(4, len(G), generator=generator, dtype=torch.float64) * SIGMA.sqrt()
        pieces = G + noise / tokens.sqrt()[:, None]
        found.append(parts_of(pieces, tokens, tokens, examples=[5] * 4))
    within_three_errors([part.grad_sq_norm for part in found], GRAD_SQ, "|G|^2")
    per_token = [part.noise_trace * int(n.sum()) / 20 for part, n in zip(found, lengths, strict=True)]
    within_three_errors(per_token, TRACE, "tr Sigma of a token")
    within_three_errors([part.noise_trace for part in found], TRACE * (20 / lengths.sum((1, 2))).mean().item(), "doc.")
    assert {part.batch_size for part in found} == {20}


class Net:
    """A small network with 48 examples and the gradient of each."""

    def __init__(self):
        torch.manual_seed(6)
        model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
        x, y = torch.randn(48, 5, dtype=torch.float64), torch.randint(0, 3, (48,))
        rows = []
        for i in range(48):
            gradients = torch.autograd.grad(cross_entropy(model(x[i : i + 1]), y[i : i + 1]), model.parameters())
            rows.append(torch.cat([g.flatten() for g in gradients]))
        self.rows = torch.stack(rows)
        self.mean_sq = self.rows.mean(dim=0).square().sum().item()
        self.trace = self.rows.var(dim=0, unbiased=True).sum().item()


@pytest.fixture(scope="module")
def net():
    return Net()


@pytest.mark.parametrize(
    ("weights", "sizes"), [((8, 8, 3), (8, 8, 3)), ((1, 1, 1), (8, 8, 3)), ((1,) * 16, (1,) * 16), ((1, 1), (20, 20))]
)
def test_unbiased_on_a_network_without_replacement(net, weights, sizes):
    generator = torch.Generator().manual_seed(sum(sizes))
    found, independent = [], []
    for _ in range(REPEATS):
        drawn = torch.randperm(48, generator=generator)[: sum(sizes)]
        pieces = torch.stack([net.rows[part].mean(dim=0) for part in drawn.split(list(sizes))])
        found.append(parts_of(pieces, weights, sizes, population=48))
        independent.append(parts_of(pieces, weights, sizes).grad_sq_norm)
    within_three_errors([part.noise_trace for part in found], net.trace, "tr Sigma")
    within_three_errors([part.grad_sq_norm for part in found], net.mean_sq, "|G|^2")
    within_three_errors(independent, net.mean_sq - net.trace / 48, "|G|^2 of what the 48 are a sample of")


def test_all_examples_of_a_data_set_are_exact(net):
    found = parts_of(net.rows, [1] * 48, [1] * 48, population=48)
    assert found.noise_trace == pytest.approx(net.trace, rel=1e-12)
    assert found.grad_sq_norm == pytest.approx(net.mean_sq, rel=1e-12)
    assert parts_of(net.rows, [1] * 48, [1] * 48, population=20) == parts_of(net.rows, [1] * 48, [1] * 48)


def test_differences_and_squares_give_the_same(net):
    sizes = (8, 8, 3)
    pieces = torch.stack([part.mean(dim=0) for part in net.rows[:19].split(list(sizes))])
    for population in (None, 19, 48):
        other = noise_from_pieces([[piece] for piece in pieces], sizes, population=population)
        found = parts_of(pieces, sizes, sizes, population=population)
        assert found.noise_trace == pytest.approx(other.noise_trace, rel=1e-11)
        assert found.grad_sq_norm == pytest.approx(other.grad_sq_norm, rel=1e-11)
        assert (found.batch_size, found.pieces) == (other.batch_size, other.pieces) == (19, 3)


def squares_of(scopes, pieces, seed=4):
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(scopes, pieces, 7, generator=generator, dtype=torch.float64) + 0.3
    return h.square().sum(dim=2), h.sum(dim=1).square().sum(dim=1)


def test_sums_add_up_over_micro_batches_and_processes():
    squares, whole = squares_of(3, 6)
    weights, units = torch.tensor([3.0, 5, 1, 2, 2, 4]), torch.tensor([6.0, 4, 9, 2, 2, 8])
    at_once = Sums(3)
    at_once.add_pieces(squares, weight=weights, units=units)
    ranks = []
    for own in ((0, 1, 2), (3, 4), (5,)):
        ranks.append(Sums(3))
        for k in own:
            ranks[-1].add_pieces(squares[:, k : k + 1], weight=weights[k], units=float(units[k]))
    rows = [rank.pack() for rank in ranks]
    assert {len(row) for row in rows} == {packed(3)}
    reduced = torch.stack(rows).sum(dim=0)  # what one all-reduce does
    assert reduced.tolist() == pytest.approx(at_once.pack().tolist(), rel=1e-14)
    for scope, found in enumerate(estimates(reduced.tolist(), whole.tolist())):
        one = Sums(1)
        one.add_pieces(squares[scope : scope + 1], weight=weights, units=units)
        (alone,) = estimates(one.pack().tolist(), [whole[scope].item()])
        assert found.noise_trace == pytest.approx(alone.noise_trace, rel=1e-13)
        assert found.batch_size == 31
    # only the proportions of the weights matter
    other = Sums(3)
    other.add_pieces(squares, weight=10 * weights, units=units)
    pairs = zip(
        estimates(other.pack().tolist(), whole.tolist()), estimates(reduced.tolist(), whole.tolist()), strict=True
    )
    for a, b in pairs:
        assert a.noise_trace == pytest.approx(b.noise_trace, rel=1e-12)
        assert a.grad_sq_norm == pytest.approx(b.grad_sq_norm, rel=1e-12)
    with pytest.raises(ValueError, match="expected 16 numbers"):
        estimates(reduced.tolist(), whole.tolist()[:2])


def test_a_scale_is_taken_out():
    """Micro-batches weighed 1/3 of which there are two, under a loss scale of 1024."""
    squares, whole = squares_of(1, 2)
    plain, scaled = Sums(1), Sums(1)
    scale = 1024 * 2 / 3
    plain.add_pieces(squares, units=4.0)
    scaled.add_pieces(squares * scale**2, units=4.0)
    (found,) = estimates(scaled.pack().tolist(), (whole * scale**2).tolist(), scale=scale)
    (truth,) = estimates(plain.pack().tolist(), whole.tolist())
    assert found.noise_trace == pytest.approx(truth.noise_trace, rel=1e-12)
    assert found.grad_sq_norm == pytest.approx(truth.grad_sq_norm, rel=1e-12)


def test_counts_may_stay_on_the_device():
    squares, whole = squares_of(2, 3)
    host, device, vector = Sums(2), Sums(2), Sums(2)
    for k, tokens in enumerate((12, 7, 0)):
        host.add_pieces(squares[:, k : k + 1], weight=tokens, units=tokens, examples=3)
        device.add_pieces(squares[:, k : k + 1], weight=torch.tensor(tokens), units=torch.tensor(tokens), examples=3)
    counts = torch.tensor([12, 7, 0])
    vector.add_pieces(squares, weight=counts, units=counts, examples=torch.tensor([3.0, 3.0, 3.0]))
    assert host.pack().tolist() == device.pack().tolist() == vector.pack().tolist()
    (found, _) = estimates(host.pack().tolist(), whole.tolist())
    assert (found.pieces, found.batch_size) == (2, 6)  # no token, no piece


class NothingIsRead(TorchDispatchMode):
    """Forbids what makes a host wait for its device: reading a number, or sizes that depend on numbers."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), func
        return func(*args, **(kwargs or {}))


def test_nothing_is_read_from_the_device():
    squares, _ = squares_of(2, 3)
    tokens = torch.tensor([12, 7, 0])
    with NothingIsRead():
        sums = Sums(2)
        sums.add_pieces(squares[:, :1], weight=tokens[0], units=tokens[0], examples=3)
        sums.add_pieces(squares[:, 1:2], units=tokens[1])
        sums.add_pieces(squares, weight=tokens, units=tokens)
        row = sums.pack()
    assert row.isfinite().all()
    with pytest.raises(AssertionError), NothingIsRead():
        float(tokens[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_floor_of_squares(dtype):
    """A relative error of 1e-7 of the norms leaves the noise scale to 1e-7 B / (K - 1); rounded inputs, exact sums."""
    generator = torch.Generator().manual_seed(7)
    noise = torch.randn(4, 5000, generator=generator, dtype=torch.float64)
    pieces = (100.0 + noise).to(dtype).double()  # per example tr Sigma / |G|^2 is 1e-4, with 1024 examples in a piece
    found = parts_of(pieces, [1] * 4, [1024] * 4)
    exact = noise_from_pieces([[100.0 + row] for row in noise], [1024] * 4)
    assert found.noise_trace / found.grad_sq_norm == pytest.approx(
        exact.noise_trace / exact.grad_sq_norm, abs=1e-7 * 4096 / 3
    )


def test_bad_pieces_are_explained():
    def of(*pieces, whole=4.0):
        sums = Sums(1)
        for square, weight, units in pieces:
            sums.add_pieces(torch.tensor([[square]]), weight=weight, units=units)
        (found,) = estimates(sums.pack().tolist(), [whole])
        assert math.isnan(found.noise_trace) == (found.status is not Status.OK)
        return found.status, found.reason

    one, undetermined = (1.0, 1.0, 8.0), Status.UNDETERMINED
    assert of(one, one)[0] is Status.OK
    assert of() == (undetermined, "no piece was seen")
    assert of((1.0, 0.0, 0.0)) == (undetermined, "no piece was seen")
    assert of(one)[0] is undetermined
    assert "one piece only" in of(one)[1]
    assert "one piece only" in of(one, (1.0, 0.0, 8.0))[1]
    assert of(one, (1.0, 1.0, 0.0)) == (undetermined, "one of the pieces has no examples, or units, to be counted")
    assert of(one, (1.0, torch.tensor(1.0), torch.tensor(0.0)))[1] == of(one, (1.0, 1.0, 0.0))[1]
    assert of(one, (1.0, 1.0, math.nan))[0] is undetermined
    assert of(one, one, (math.nan, 1.0, 8.0)) == (
        Status.NON_FINITE,
        "the gradient of 1 of 3 pieces is not finite",
    )
    assert of((math.inf, 1.0, 8.0), (math.inf, 1.0, 8.0))[1] == "the gradient of 2 of 2 pieces is not finite"
    assert of(one, one, whole=math.inf) == (Status.NON_FINITE, "the gradient is not finite")
    zeros = Sums(1)
    zeros.add_pieces(torch.zeros(1, 4), units=2.0)
    (zero,) = estimates(zeros.pack().tolist(), [0.0])
    assert (zero.grad_sq_norm, zero.noise_trace, zero.status) == (0.0, 0.0, Status.OK)


def test_nothing_is_done_to_what_comes_in():
    squares = torch.ones(2, 1, requires_grad=True)
    sums = Sums(2)
    sums.add_pieces(squares)
    assert not sums.pack().requires_grad
    row = sums.pack()
    row.zero_()
    assert sums.pack().any()
