"""Lanczos on matrices with known spectra."""

import math

import pytest
import torch

from learnmech.probes.curvature import lanczos


def matrix_with(spectrum, seed=0, dtype=torch.float64):
    values = torch.tensor(spectrum, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(len(values), len(values), generator=generator, dtype=torch.float64)
    q = torch.linalg.qr(random).Q
    return ((q * values) @ q.T).to(dtype)


def run(matrix, k=1, seed=1, start=None, **settings):
    generator = torch.Generator().manual_seed(seed)
    calls = []

    def draw():
        return torch.randn(len(matrix), generator=generator, dtype=matrix.dtype)

    def matvec(v):
        calls.append(v)
        return matrix @ v

    block = torch.stack([draw() for _ in range(k)]) if start is None else start
    pairs = lanczos(matvec, block, draw=draw, **settings)
    assert pairs.products == len(calls)
    return pairs


def check(matrix, pairs, dtype_slack=1e-12):
    """Every reported residual bounds the true one, and some eigenvalue lies within it."""
    exact = torch.linalg.eigvalsh(matrix.double())
    scale = exact.abs().max().clamp(min=1e-300)
    for value, residual, vector in zip(pairs.values, pairs.residuals, pairs.vectors.double(), strict=True):
        assert (matrix.double() @ vector - value * vector).norm() <= residual * (1 + 1e-6) + dtype_slack * scale
        assert (exact - value).abs().min() <= residual + dtype_slack * scale
        assert value <= exact[-1] + dtype_slack * scale


def test_largest_algebraic_not_largest_in_absolute_value():
    pairs = run(torch.diag(torch.tensor([1.0, -3.0], dtype=torch.float64)))
    assert pairs.values.item() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("seed", range(3))
def test_matches_lapack(dtype, k, seed):
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.randn(60, generator=generator, dtype=torch.float64).mul(3).sinh().tolist()
    matrix = matrix_with(spectrum, seed, dtype)
    pairs = run(matrix, k, tol=1e-5, max_products=60)
    assert pairs.converged
    truth = torch.linalg.eigvalsh(matrix.double()).flip(0)[:k]
    torch.testing.assert_close(pairs.values, truth, rtol=1e-5, atol=0)
    check(matrix, pairs, 1e-12 if dtype is torch.float64 else 2e-6)


def test_never_more_than_the_budget_and_bounds_tell():
    # A peer's mistake: at one iteration it returned 0.49 where the truth is 3.15, unmarked.
    matrix = matrix_with([3.15, 3.0, 2.9, *torch.linspace(-2, 2, 97).tolist()])
    for budget in (1, 2, 3, 7):
        pairs = run(matrix, max_products=budget, tol=1e-8)
        assert pairs.products == budget
        assert not pairs.converged
        assert pairs.residuals.item() > 1e-8 * abs(pairs.values.item())
        check(matrix, pairs)


def test_fewer_dimensions_than_products():
    for n in (1, 2, 3):
        matrix = matrix_with([2.0, -1.0, 0.5][:n])
        pairs = run(matrix, k=n, max_products=50)
        assert pairs.converged
        assert pairs.products <= n
        torch.testing.assert_close(pairs.values, torch.linalg.eigvalsh(matrix).flip(0), rtol=0, atol=1e-12)


def test_invariant_subspace():
    # Rank two in fifty dimensions: the Krylov space of a random vector ends after three products.
    matrix = matrix_with([4.0, 1.0] + [0.0] * 48)
    one = run(matrix, tol=1e-14, max_products=40)
    assert one.converged
    assert one.products <= 3
    assert one.values.item() == pytest.approx(4.0, rel=1e-13)
    four = run(matrix, k=4, tol=1e-10, max_products=40)
    assert four.converged
    torch.testing.assert_close(four.values, torch.tensor([4.0, 1.0, 0.0, 0.0], dtype=torch.float64), rtol=0, atol=1e-12)


def test_multiple_and_nearly_multiple_eigenvalues():
    # One Krylov vector cannot see a multiplicity; a block of k sees up to k.
    for spectrum in ([5.0, 5.0, 5.0, 1.0], [5.0, 5.0 - 1e-6, 5.0 - 2e-6, 4.9]):
        matrix = matrix_with(spectrum + torch.linspace(-3, 0.9, 60).tolist())
        pairs = run(matrix, k=3, tol=1e-3, max_products=64)
        assert pairs.converged
        torch.testing.assert_close(pairs.values, torch.full((3,), 5.0, dtype=torch.float64), rtol=1e-6, atol=0)
        check(matrix, pairs)
    # A gap of 1e-3 below a tolerance of 1e-3: the vector may be any mixture of the two, the value is still right.
    matrix = matrix_with([2.0, 2.0 * (1 - 1e-3), *torch.linspace(-1, 1, 80).tolist()])
    pairs = run(matrix)
    assert pairs.converged
    assert pairs.values.item() == pytest.approx(2.0, rel=1e-3)
    check(matrix, pairs)


def test_zero_and_negative_matrices():
    zero = run(torch.zeros(20, 20, dtype=torch.float64), k=2)
    assert zero.converged
    assert zero.values.tolist() == [0.0, 0.0]
    assert zero.residuals.tolist() == [0.0, 0.0]
    negative = matrix_with((-torch.linspace(1, 9, 30)).tolist())
    pairs = run(negative, tol=1e-8, max_products=40)
    assert pairs.converged
    assert pairs.values.item() == pytest.approx(-1.0, rel=1e-9)
    # Top eigenvalue zero beside large negative ones: no relative residual can be reached, rounding can.
    singular = matrix_with([0.0, *(-torch.linspace(1, 9, 30)).tolist()])
    pairs = run(singular, tol=1e-6, max_products=60)
    assert pairs.converged
    assert abs(pairs.values.item()) < 1e-12


def test_non_finite_product_is_flagged_at_once():
    matrix = matrix_with(torch.linspace(-1, 1, 30).tolist())
    count = 0

    def breaks(v):
        nonlocal count
        count += 1
        return matrix @ v * (math.nan if count == 3 else 1.0)

    pairs = lanczos(breaks, torch.ones(1, 30, dtype=torch.float64), draw=lambda: torch.ones(30), tol=1e-9)
    assert not pairs.finite
    assert not pairs.converged
    assert pairs.products == 3
    assert pairs.values.isnan().all()
    assert pairs.vectors.shape == (0, 30)


def test_asymmetry_is_seen():
    symmetric = matrix_with(torch.linspace(-1, 1, 30).tolist())
    assert run(symmetric, tol=1e-9).asymmetry < 1e-14
    skewed = symmetric.clone()
    skewed[:15, 15:] *= 1.3
    assert run(skewed, tol=1e-9, max_products=20).asymmetry > 0.02


def test_dependent_start_vectors_are_replaced():
    matrix = matrix_with([3.0, 2.0, *torch.linspace(-1, 1, 30).tolist()])
    start = torch.ones(3, 32, dtype=torch.float64)
    start[2] = 0.0
    pairs = run(matrix, k=3, start=start, tol=1e-8, max_products=32)
    torch.testing.assert_close(pairs.values, torch.linalg.eigvalsh(matrix).flip(0)[:3], rtol=1e-9, atol=0)


def test_bound_holds_in_float32_with_many_small_components():
    """A diagonal matrix is its own oracle. Sums kept in float32 by `torch.dot` broke the bound thirteenfold here."""
    n = 3_000_000
    generator = torch.Generator().manual_seed(3)
    diagonal = torch.randn(n, generator=generator) * 0.01
    diagonal[:5] = torch.tensor([1.0, 0.9, 0.8, -2.0, 0.5])

    def draw():
        return torch.randn(n, generator=generator)

    pairs = lanczos(lambda v: diagonal * v, draw()[None], draw=draw, tol=1e-4)
    v = pairs.vectors[0].double()
    true = (diagonal.double() * v - pairs.values[0] * v).norm() / v.norm()
    assert pairs.converged
    assert true <= pairs.residuals[0]
    assert pairs.asymmetry < 1e-6
    assert pairs.values.item() == pytest.approx(1.0, rel=1e-6)


def test_bad_sizes_are_explained():
    with pytest.raises(ValueError, match="k must not exceed either"):
        run(torch.eye(2, dtype=torch.float64), k=3)
    with pytest.raises(ValueError, match="k must not exceed either"):
        run(torch.eye(9, dtype=torch.float64), k=3, max_products=2)
