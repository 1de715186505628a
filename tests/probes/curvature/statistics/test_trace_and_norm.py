"""Trace and Frobenius norm: unbiased, with an error bar that covers what it says, exact where the space is filled.

Oracle: the eigenvalues, from which the matrices are made. Seeds are those of the repeats, 0, 1, 2, ...
"""

import math
import threading

import pytest
import torch

from learnmech.observables import Status
from learnmech.probes.curvature import Space
from learnmech.probes.curvature.statistics import hessian_spectrum_of


@pytest.fixture
def repeated(matrix):
    """Measure a diagonal matrix many times, each time with other vectors."""

    def measure(values, repeats, **settings):
        operator = matrix(values)
        return [hessian_spectrum_of(operator, seed=seed, check=False, **settings) for seed in range(repeats)]

    return measure


@pytest.mark.parametrize("name", ["bulk", "outliers", "semicircle", "power"])
def test_unbiased_with_a_calibrated_error_bar(name, spectrum, repeated):
    """Of 200 repeats: the mean within 3 standard errors, and of the 95 % intervals 92 to 99 % cover the trace.

    The intervals of the norm cover 88 % or more: squares of a few samples have a long tail. In 200 repeats a share of
    95 % has a standard error of 1.5 %.
    """
    values = spectrum(name)
    trace, norm = float(values.sum()), float(values.square().sum().sqrt())
    found = repeated(values, 200, vectors=2, steps=6, samples=8)
    traces = torch.tensor([s.trace - trace for s in found])
    squares = torch.tensor([s.frobenius**2 - norm**2 for s in found])
    for errors in (traces, squares):
        assert abs(float(errors.mean())) < 3 * float(errors.std()) / math.sqrt(len(errors))
    covered = [abs(s.trace - trace) < 1.96 * s.trace_error for s in found]
    assert 0.92 <= sum(covered) / 200 <= 0.99
    covered = [abs(s.frobenius - norm) < 1.96 * s.frobenius_error for s in found]
    assert sum(covered) / 200 >= 0.88
    # and it is not bought with bars that are too wide: root mean squares, so that rare large ones count
    stated = math.sqrt(sum(s.trace_error**2 for s in found) / 200)
    assert stated < 1.4 * float(traces.square().mean().sqrt())


def test_unbiased_in_a_small_space(repeated):
    """Eight dimensions, three of them in the first space: what couples it to the rest is a large part of the whole."""
    values = torch.tensor([-4.0, -3.0, -2.0, -1.0, 1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    found = repeated(values, 400, vectors=1, steps=3, samples=2)
    for estimates, truth in (
        ([s.trace for s in found], float(values.sum())),
        ([s.frobenius**2 for s in found], float(values.square().sum())),
    ):
        error = torch.tensor(estimates) - truth
        assert abs(float(error.mean())) < 3 * float(error.std()) / 20


def test_outliers_cost_no_accuracy(spectrum, repeated):
    """At equal products, Hutchinson's estimate scatters by sqrt(2 / 32) |H|_F, and of the square by more."""
    values = spectrum("outliers")
    norm = float(values.square().sum().sqrt())
    found = repeated(values, 30)
    error = math.sqrt(sum((s.trace - float(values.sum())) ** 2 for s in found) / 30)
    assert error < 0.25 * math.sqrt(2 / 32) * norm
    error = math.sqrt(sum((s.frobenius - norm) ** 2 for s in found) / 30) / norm
    by_hutchinson = math.sqrt(2 * float(values.pow(4).sum()) / 32) / (2 * norm**2)
    assert error < 0.05 * by_hutchinson


@pytest.mark.parametrize(
    "values",
    [[1.0, -3.0], [5.0], [0.0, 0.0, 0.0], [2.0] * 7, [4.0, -1.0, 0.0, 0.0, 0.0, 4.0], list(range(-4, 9))],
    ids=["1-and-3", "one", "zero", "identity", "degenerate", "thirteen"],
)
def test_a_space_that_is_filled_is_exact(values, matrix):
    values = torch.tensor(values, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(len(values), len(values), generator=torch.manual_seed(0)).double()).Q
    operator = matrix(basis @ torch.diag(values) @ basis.T)
    found = hessian_spectrum_of(operator, vectors=10, steps=5)
    assert found.status is Status.OK
    assert found.trace == pytest.approx(float(values.sum()), abs=1e-12)
    assert found.frobenius == pytest.approx(float(values.norm()), abs=1e-12)
    assert found.trace_error < 1e-10
    assert found.frobenius_error < 1e-10
    for p in (0.1, 0.35, 0.8):
        quantile = found.quantile(p)
        expected = float(values.sort().values[math.ceil(p * len(values)) - 1])
        assert quantile.value == pytest.approx(expected, abs=1e-9)
        assert quantile.upper - quantile.lower < 1e-9


@pytest.mark.parametrize("rank", [1, 20])
def test_rank_deficient(rank, repeated):
    """The complement of the first space is (nearly) zero: trace and norm are exact although the space is not filled."""
    values = torch.zeros(300, dtype=torch.float64)
    values[:rank] = torch.linspace(1, 9, rank, dtype=torch.float64)
    (found,) = repeated(values, 1, vectors=1, steps=21, samples=4)
    assert found.trace == pytest.approx(float(values.sum()), rel=1e-9)
    assert found.frobenius == pytest.approx(float(values.norm()), rel=1e-9)
    assert found.trace_error < 1e-6
    assert found.quantile(0.5).value == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(("vectors", "steps", "samples"), [(1, 2, 0), (1, 9, 2), (2, 5, 0), (3, 5, 0), (4, 8, 5)])
def test_products_are_counted_and_no_more_than_allowed(vectors, steps, samples, spectrum, matrix):
    operator = matrix(spectrum("bulk"))
    found = hessian_spectrum_of(operator, vectors=vectors, steps=steps, samples=samples, check=False)
    assert found.products == operator.products == vectors * steps + samples
    assert abs(found.trace - float(operator.entries.sum())) < 4 * found.trace_error
    assert found.trace_error > 0


def test_float32(spectrum, matrix, monkeypatch):
    """The same vectors in both precisions: what differs is rounding."""
    values = spectrum("outliers", 5000).float()
    monkeypatch.setattr(Space, "draw", _draw)
    exact = hessian_spectrum_of(matrix(values.double()), check=False)
    found = hessian_spectrum_of(matrix(values), check=False)
    assert found.trace == pytest.approx(exact.trace, abs=1e-3 * exact.trace_error)
    assert found.frobenius == pytest.approx(exact.frobenius, rel=1e-5)
    assert found.quantile(0.3).value == pytest.approx(exact.quantile(0.3).value, rel=1e-3)
    assert found.noise < 1e-4 * found.frobenius
    assert found.status is Status.OK


def _draw(space, generator):
    return torch.randn(space.size, generator=generator, dtype=torch.float64).to(space.dtype)


def test_vectors_in_shards_give_what_one_process_gives(spectrum, matrix):
    """Two threads stand for two processes; `reduce` adds up between them, as an all-reduce would."""
    values = spectrum("outliers", 600)
    barrier, parts, results = threading.Barrier(2), [None, None], [None, None]

    def process(rank):
        def reduce(partial):
            parts[rank] = partial
            barrier.wait(10)
            total = parts[0] + parts[1]
            barrier.wait(10)
            return total

        own = values[rank::2]
        space = Space(len(own), own.dtype, own.device, dimension=len(values), reduce=reduce, salt=1000 * rank)
        results[rank] = hessian_spectrum_of(matrix(own, space), check=False)

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, second = results
    assert (first.trace, first.trace_error) == (second.trace, second.trace_error)
    assert first.quantile(0.9) == second.quantile(0.9)
    assert first.size == 600
    assert abs(first.trace - float(values.sum())) < 3 * first.trace_error
    assert abs(first.frobenius - float(values.norm())) < 3 * first.frobenius_error


class Inexact:
    """Errors of products: independent of one another, of a given size per unit vector, and an account of them."""

    def __init__(self, inner, size, account):
        self.inner, self.size, self.error = inner, size, account
        self.generator = torch.Generator().manual_seed(5)

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def matvec(self, vector):
        noise = torch.randn(len(vector), generator=self.generator, dtype=vector.dtype)
        return self.inner.matvec(vector) + self.size * noise / math.sqrt(len(vector))


def test_inexact_products_widen_the_bars_or_are_refused(spectrum, matrix):
    values = spectrum("outliers")
    exact = hessian_spectrum_of(matrix(values), check=False)
    slight = hessian_spectrum_of(Inexact(matrix(values), 0.05, 0.05 / 20), check=False)
    assert slight.status is Status.OK
    assert slight.trace_error > exact.trace_error
    assert abs(slight.trace - float(values.sum())) < 3 * slight.trace_error
    # without an account of its own, the noise is seen where products should vanish
    for account in (5.0 / 20, 0.0):
        much = hessian_spectrum_of(Inexact(matrix(values), 5.0, account), check=False)
        assert much.status is Status.UNDETERMINED
        assert "not exact enough" in much.reason
        assert abs(much.trace - float(values.sum())) < 3 * much.trace_error


class Shifted(Inexact):
    """Errors of products that all have the same sign, as kinks make them."""

    def matvec(self, vector):
        return self.inner.matvec(vector) + self.size * vector


def test_errors_of_one_sign_are_covered_where_the_space_is_filled(matrix):
    found = hessian_spectrum_of(Shifted(matrix(torch.arange(6).double()), 0.1, 0.1 / 5), check=False)
    assert found.status is Status.OK
    assert abs(found.trace - 15) == pytest.approx(0.6, rel=1e-9)
    assert 1.96 * found.trace_error > 0.6


def test_an_asymmetric_matrix_is_no_hessian(spectrum, matrix):
    entries = torch.diag(spectrum("outliers"))
    entries[-1, -2] += 5.0
    found = hessian_spectrum_of(matrix(entries))
    assert found.status is Status.UNSUPPORTED
    assert "asymmetric" in found.reason
    assert math.isnan(found.trace)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_product_that_is_not_finite(bad, matrix):
    operator = matrix(torch.tensor([1.0, bad, 2.0], dtype=torch.float64))
    found = hessian_spectrum_of(operator)
    assert found.status is Status.NON_FINITE
    assert math.isnan(found.trace)
    assert math.isnan(found.quantile(0.5).value)
    assert len(found.nodes) == 0
    assert operator.products == 1


@pytest.mark.parametrize(("vectors", "steps", "samples"), [(0, 5, 0), (3, 1, 2), (2, 2, -1), (2, 2, 1)])
def test_too_few_vectors_or_steps(vectors, steps, samples, matrix):
    with pytest.raises(ValueError, match=f"{vectors} vectors with {steps} steps each and {samples} samples"):
        hessian_spectrum_of(matrix(torch.ones(3)), vectors=vectors, steps=steps, samples=samples)
