"""What the benchmark measures with: its reference, its counters, its memory, its description of manners."""

import math

import numpy as np
import pytest
import torch
from benchmarks import manners
from benchmarks.measuring import peak_bytes, timed
from benchmarks.models import TASKS, CrossEntropy, loss_fn, random_batch
from benchmarks.problems import Problem, size
from benchmarks.reference import reference, second_opinion
from benchmarks.side_by_side import error_of, said
from benchmarks.tools import Again, Reading, counted, ours
from torch import nn

MIB = 2**20


@pytest.fixture
def small():
    """A network so small that its Hessian can be written out."""
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    return Problem("small", 0, network, (torch.randn(16, 3), torch.randint(3, (16,))))


def dense_top(problem):
    """The largest eigenvalue of the whole Hessian, by torch's own `hessian` and `eigvalsh` in float64."""
    model, (inputs, targets) = problem.precise()
    shapes = [p.shape for p in model.parameters()]

    def loss(vector):
        pieces = torch.split(vector, [s.numel() for s in shapes])
        named = dict(zip([n for n, _ in model.named_parameters()], pieces, strict=True))
        named = {name: piece.view(shape) for (name, piece), shape in zip(named.items(), shapes, strict=True)}
        return CrossEntropy()(torch.func.functional_call(model, named, inputs), targets)

    at = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    return float(torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, at))[-1])


def test_reference_is_the_dense_answer(small):
    """Independent: a whole Hessian written out, against products and iterations."""
    truth = dense_top(small)
    assert reference(small, 1e-9) == pytest.approx(truth, rel=1e-8)
    assert second_opinion(small) == pytest.approx(truth, rel=1e-8)


def test_ours_cold_and_again(small):
    truth = dense_top(small)
    assert ours(small.model(), small.batch, 1).value == pytest.approx(truth, rel=1e-3)
    again = Again(small.model(), small.batch)(small.model(), small.batch, 1)
    assert again.value == pytest.approx(truth, rel=1e-3)
    assert 1 <= again.products < ours(small.model(), small.batch, 1).products


def test_copies_are_their_own(small):
    model = small.model()
    with torch.no_grad():
        next(model.parameters()).zero_()
    assert next(small.network.parameters()).abs().sum() > 0


def test_counted_counts_columns_and_restores():
    class Owner:
        def twice(self, x):
            return 2 * x

    original = Owner.twice
    with counted(Owner, "twice", lambda _, x: len(x)) as calls:
        assert Owner().twice([1, 2, 3]) == [1, 2, 3, 1, 2, 3]
        Owner().twice([1])
    assert calls == [4]
    assert Owner.twice is original


def test_peak_is_the_highest_level_of_both_allocators():
    def work():
        first = torch.zeros(2 * MIB)  # 8 MiB
        del first
        second = np.zeros(MIB)  # 8 MiB
        third = torch.zeros(3 * MIB)  # 12 MiB
        return float(third[0]) + second[0]

    assert 20 * MIB <= peak_bytes(work) < 21 * MIB


def test_timed_returns_the_result():
    result, spent = timed(lambda: sum(range(100_000)))
    assert result == sum(range(100_000))
    assert spent.cpu > 0
    assert spent.wall > 0


def test_errors_of_readings():
    assert error_of(1.01, 1.0) == pytest.approx(0.01)
    assert error_of(math.nan, 1.0) == math.inf
    assert said(RuntimeError("one\ntwo")) == "RuntimeError: one"
    assert len(said(ValueError("x" * 500))) == 140


@pytest.mark.parametrize(
    ("reading", "words"),
    [
        (Reading(1.001, 5), "right"),
        (Reading(-3.0, 5), "**-3 instead of 1**, says nothing"),
        (Reading(0.5, 5, "not_converged: out of products"), "**50 % off**, says not converged"),
        (Reading(math.nan, 5, "gave up"), "no value; says gave up"),
    ],
)
def test_what_is_said_of_a_reading(reading, words):
    assert manners.judged(reading, 1.0) == words


def test_saddle_has_its_spectrum():
    problem = manners.saddle()
    w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    model = problem.model().double()
    hessian = torch.autograd.functional.hessian(
        lambda w: CrossEntropy()(torch.func.functional_call(model, {"w": w}, problem.batch[0]), problem.batch[1]), w
    )
    torch.testing.assert_close(hessian, torch.diag(torch.tensor([1.0, -3.0, 0.5], dtype=torch.float64)))


def test_traces_are_seen():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
    problem = Problem("small", 0, network, (torch.randn(16, 3), torch.randint(3, (16,))))

    def careless(model, batch, seed):
        model.eval()
        torch.rand(1)
        model[1].running_mean.add_(1)
        next(model.parameters()).grad = None
        with torch.no_grad():
            model[3].bias.add_(1)
        return Reading(1.0, 1)

    everything = "changes weights, BatchNorm's averages, gradients, training mode, random numbers"
    assert manners.traces(careless, problem) == everything
    assert manners.traces(ours, problem) == "nothing changed"


@pytest.mark.parametrize("name", list(TASKS))
def test_random_batches_fit_the_networks(name):
    model = TASKS[name].make()
    assert torch.isfinite(loss_fn(model, random_batch(name))).item()
    assert 80_000 < size(model) < 500_000
