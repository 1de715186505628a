"""Thick restarts, both ends, and the stopping rule on the eigenvalue's own error, on matrices with known spectra."""

import pytest
import torch

from learnmech.observables import Status
from learnmech.probes.curvature import lanczos, top_eigenvalues
from learnmech.probes.curvature.solvers import basis as basis_module
from learnmech.probes.curvature.solvers.stopping import Trust


def matrix_with(spectrum, seed=0):
    values = torch.as_tensor(spectrum, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64)).Q
    return (q * values) @ q.T


def outliers(n=300, top=(10.0, 9.0, 8.5, 7.0), seed=0):
    """A few eigenvalues over a bulk around zero, and two below it, as networks have them."""
    generator = torch.Generator().manual_seed(seed)
    bulk = torch.randn(n - len(top) - 2, generator=generator, dtype=torch.float64) * 0.5
    return torch.cat([torch.tensor(top, dtype=torch.float64), torch.tensor([-6.0, -4.0], dtype=torch.float64), bulk])


def run(matrix, b=1, seed=1, start=None, **settings):
    generator = torch.Generator().manual_seed(seed)

    def draw():
        return torch.randn(len(matrix), generator=generator, dtype=torch.float64)

    block = torch.stack([draw() for _ in range(b)]) if start is None else start
    return lanczos(lambda v: matrix @ v, block, draw=draw, **settings)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("which", ["largest", "smallest", "both"])
def test_a_small_basis_finds_the_same_eigenvalues(k, which):
    spectrum = outliers()
    matrix, exact = matrix_with(spectrum), spectrum.sort().values
    ends = 2 * k if which == "both" else k
    small = run(matrix, k, k=k, which=which, tol=1e-8, max_products=300, max_basis=ends + k + 6)
    assert small.converged
    wanted = {"largest": exact.flip(0)[:k], "smallest": exact[:k], "both": torch.cat([exact.flip(0)[:k], exact[:k]])}
    torch.testing.assert_close(small.values, wanted[which], rtol=1e-9, atol=0)
    distances = (small.vectors @ matrix - small.values[:, None] * small.vectors).norm(dim=1)
    assert (distances <= small.residuals * (1 + 1e-6) + 1e-12).all()
    # the product count is that of a full basis, and some
    full = run(matrix, k, k=k, which=which, tol=1e-8, max_products=300)
    assert full.products <= small.products <= 2.5 * full.products


def test_the_basis_is_never_larger_than_allowed(monkeypatch):
    largest = 0
    multiply = basis_module.Basis.multiply

    def counted(self, *arguments):
        nonlocal largest
        done = multiply(self, *arguments)
        largest = max(largest, len(self.vectors))
        return done

    monkeypatch.setattr(basis_module.Basis, "multiply", counted)
    matrix = matrix_with(outliers())
    assert run(matrix, tol=1e-9, max_products=100, max_basis=8).products > 16
    assert largest == 8
    monkeypatch.setattr(basis_module, "SLICE", 7)  # combinations are made in slices: here in 43 of them
    sliced = run(matrix, tol=1e-9, max_products=100, max_basis=8)
    assert sliced.values.item() == pytest.approx(10.0, rel=1e-12)


def test_budget_during_restarts_is_kept_and_the_bound_tells():
    matrix = matrix_with(outliers())
    for budget in (9, 13, 21):
        pairs = run(matrix, tol=1e-12, max_products=budget, max_basis=7)
        assert pairs.products == budget
        assert not pairs.converged
        assert (torch.linalg.eigvalsh(matrix) - pairs.values).abs().min() <= pairs.residuals.item()


def test_one_and_minus_three():
    matrix = torch.diag(torch.tensor([1.0, -3.0], dtype=torch.float64))
    assert run(matrix, which="largest").values.tolist() == pytest.approx([1.0], abs=1e-12)
    assert run(matrix, which="smallest").values.tolist() == pytest.approx([-3.0], abs=1e-12)
    assert run(matrix, which="both").values.tolist() == pytest.approx([1.0, -3.0], abs=1e-12)


def test_both_ends_of_a_hessian_and_the_next_measurement_starts_from_them():
    class Saddle(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.linspace(-1, 1, 60, dtype=torch.float64))

    curvatures = torch.linspace(-5, 4, 60, dtype=torch.float64)
    curvatures[-1] = 9.0
    problem = (lambda m, _: 0.5 * (curvatures * m.w.square()).sum(), Saddle(), [None])
    for settings in ({"tol": 1e-6}, {"accuracy": 1e-4}):
        cold = top_eigenvalues(*problem, 1, which="both", **settings)
        assert cold.status is Status.OK
        assert cold.eigenvalues.tolist() == pytest.approx([9.0, -5.0], rel=1e-4)
        warm = top_eigenvalues(*problem, 1, which="both", start=cold, **settings)
        assert warm.eigenvalues.tolist() == pytest.approx([9.0, -5.0], rel=1e-4)
        assert warm.products < cold.products
        bottom = top_eigenvalues(*problem, 2, which="smallest", **settings)
        assert bottom.eigenvalues.tolist() == pytest.approx(curvatures[:2].tolist(), rel=1e-3)


def test_accuracy_of_the_eigenvalue_is_kept_and_costs_less_than_its_residual():
    """Over 60 random starts on three spectra; the true error is known."""
    errors, cheap, dear = [], 0, 0
    for top in ((10.0, 9.0, 8.5, 7.0), (10.0, 9.6, 9.2, 3.0), (10.0, 4.0)):
        matrix = matrix_with(outliers(top=top))
        for seed in range(20):
            one = run(matrix, seed=seed, accuracy=0.01, max_products=80)
            assert one.converged
            errors.append(1 - one.values.item() / 10.0)
            cheap += one.products
            dear += run(matrix, seed=seed, tol=1e-3, max_products=80).products
            assert one.errors.item() <= 0.01 * one.values.item()
    assert sum(error > 0.01 for error in errors) <= 2  # a random start may hold so little of the top vector ...
    assert max(errors) < 0.05  # ... that its neighbour, 4 % below, is taken for it: an estimate is no bound
    assert cheap < 0.9 * dear


def test_the_estimate_sees_what_lies_beyond_the_block():
    """With a runner-up in the block the gap that counts is the one to the third eigenvalue."""
    values = torch.cat([torch.tensor([10.0, 9.7, 5.0], dtype=torch.float64), torch.zeros(97, dtype=torch.float64)])
    matrix = torch.diag(values)
    start = torch.eye(100, dtype=torch.float64)[:2].clone()
    start[0, 2] = start[1, 3] = 0.04
    trusted = Trust(warm=True)
    block = run(matrix, start=start, k=1, accuracy=0.01, trust=trusted)
    assert block.products == 2
    assert block.values.item() == pytest.approx(10.0, rel=0.01)
    true = 10.0 - block.values.item()
    assert true <= block.errors.item() <= 5 * true
    assert block.residuals.item() > 4 * block.errors.item()


def test_a_bad_start_costs_no_more_than_a_cold_one():
    """Starts without any part of the top vector: the bulk, the most negative eigenvector, and one mixed of both."""
    spectrum = outliers(n=2000, top=(10.0, 8.0, 7.0, 6.0, 5.0))
    matrix = torch.diag(spectrum)
    n = len(spectrum)
    generator = torch.Generator().manual_seed(3)
    whisper = torch.randn(n, generator=generator, dtype=torch.float64)
    whisper *= 0.03 / whisper.norm()
    bulk = torch.randn(n, generator=generator, dtype=torch.float64)
    bulk[:7] = 0.0
    bulk /= bulk.norm()
    negative = torch.eye(n, dtype=torch.float64)[5]
    starts = {"bulk": bulk, "negative": negative, "both": (bulk + negative) / 2**0.5}
    cold = [run(matrix, seed=seed, accuracy=0.01) for seed in range(5)]
    limit = max(pairs.products for pairs in cold)
    for name, vector in starts.items():
        challenger = torch.randn(n, generator=generator, dtype=torch.float64)
        start = torch.stack([vector + whisper, challenger / challenger.norm()])
        warm = run(matrix, start=start, k=1, accuracy=0.01, trust=Trust(warm=True))
        assert warm.values.item() == pytest.approx(10.0, rel=0.01), name
        assert warm.products <= limit + 1, (name, warm.products, limit)


def test_bad_arguments_are_explained():
    matrix = matrix_with(outliers())
    with pytest.raises(ValueError, match="expected one of 'largest', 'smallest', 'both'"):
        run(matrix, which="top")
    with pytest.raises(ValueError, match="max_basis is 3; expected at least 6"):
        run(matrix, max_basis=3)
    with pytest.raises(ValueError, match="accuracy is 0"):
        top_eigenvalues(lambda m, x: m(x).sum(), torch.nn.Linear(2, 1), [torch.ones(1, 2)], accuracy=0)
