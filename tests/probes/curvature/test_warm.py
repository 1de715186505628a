"""Warm starts: cheaper while the weights move little, and never stuck on what used to be the top."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from learnmech.observables import Status
from learnmech.probes.curvature import HessianOperator, Objective, top_eigenvalues, top_eigenvalues_of
from learnmech.probes.curvature.solvers.start import REFRESH


def diagonal_operator(diagonal):
    """0.5 w' D w: a Hessian that is known exactly and as large as one likes."""
    w = torch.zeros_like(diagonal).requires_grad_()
    return HessianOperator(Objective([w], [lambda p: 0.5 * (diagonal * p[0] * p[0]).sum()]))


def spectrum(n, generator):
    """Twenty outliers over a small bulk, as networks have them."""
    diagonal = torch.randn(n, generator=generator) * 0.01
    diagonal[2:22] = torch.linspace(0.45, 0.05, 20)
    return diagonal


def test_warm_start_saves_products_along_a_training():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    x, y = torch.randn(64, 8), torch.randint(0, 3, (64,))

    def loss(m, batch):
        return cross_entropy(m(batch[0]), batch[1])

    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    earlier, cold, warm, worst = None, 0, 0, 0.0
    for _ in range(8):
        for _ in range(3):
            optimizer.zero_grad()
            loss(model, (x, y)).backward()
            optimizer.step()
        fresh = top_eigenvalues(loss, model, [(x, y)])
        if earlier is not None:
            again = top_eigenvalues(loss, model, [(x, y)], start=earlier)
            assert again.status is Status.OK
            cold, warm = cold + fresh.products, warm + again.products
            worst = max(worst, abs(again.eigenvalues.item() / fresh.eigenvalues.item() - 1))
            earlier = again
        else:
            earlier = fresh
    assert warm <= 0.75 * cold, (warm, cold)
    assert worst < 1e-4


@pytest.mark.parametrize("seed", range(3))
def test_does_not_lock_onto_a_vector_that_was_overtaken(seed):
    # The old top stays an exact eigenvector: without noise one product would confirm it for ever.
    generator = torch.Generator().manual_seed(seed)
    diagonal = spectrum(20_000, generator)
    diagonal[0], diagonal[1] = 1.0, 0.8
    result = top_eigenvalues_of(diagonal_operator(diagonal), generator=generator, check=False)
    for second in torch.linspace(0.85, 1.3, 10).tolist():  # creeps up and passes between two measurements
        diagonal[1] = second
        result = top_eigenvalues_of(diagonal_operator(diagonal), generator=generator, start=result, check=False)
        assert result.eigenvalues.item() == pytest.approx(max(1.0, second), rel=1e-3)
    diagonal[1] = 0.5  # and a sudden swap back
    result = top_eigenvalues_of(diagonal_operator(diagonal), generator=generator, start=result, check=False)
    assert result.eigenvalues.item() == pytest.approx(1.0, rel=1e-3)


def test_what_comes_from_nowhere_is_found_after_few_measurements_at_the_latest():
    generator = torch.Generator().manual_seed(0)
    diagonal = torch.randn(50_000, generator=generator) * 0.15
    diagonal[0] = 1.0
    result = top_eigenvalues_of(diagonal_operator(diagonal), generator=generator, check=False)
    diagonal[1] = 1.1  # from within a wide bulk, in a direction never looked at
    ages = []
    for _ in range(REFRESH + 1):
        result = top_eigenvalues_of(diagonal_operator(diagonal), generator=generator, start=result, check=False)
        ages.append(result.age)
        if result.eigenvalues.item() > 1.05:
            break
    assert result.eigenvalues.item() == pytest.approx(1.1, rel=1e-3)
    assert max(ages) <= REFRESH


@pytest.mark.parametrize("seed", range(3))
def test_noise_alone_finds_a_new_outlier(seed):
    # Plain vectors bring no runner-up; what they confirm is an exact eigenvector, only not the top one.
    generator = torch.Generator().manual_seed(seed)
    diagonal = spectrum(2_000, generator)
    diagonal[0], diagonal[1] = 1.0, 3.0
    start = torch.zeros(2_000)
    start[0] = 1.0
    result = top_eigenvalues_of(diagonal_operator(diagonal), generator=generator, start=start, check=False)
    assert result.eigenvalues.item() == pytest.approx(3.0, rel=1e-3)


def test_starts_cold_from_time_to_time():
    generator = torch.Generator().manual_seed(0)
    diagonal = spectrum(2_000, generator)
    diagonal[0], diagonal[1] = 1.0, 0.8
    ages, result = [], None
    for _ in range(2 * REFRESH + 4):
        result = top_eigenvalues_of(diagonal_operator(diagonal), start=result, check=False)
        ages.append(result.age)
    cycle = list(range(REFRESH + 1))
    assert ages == [*cycle, *cycle, 0, 1]


def test_start_may_be_plain_vectors(architecture):
    problem = architecture("mlp")
    first = top_eigenvalues(problem.loss, problem.model, [problem.batch], 2)
    for start in (first.vectors, first.vectors[0], first.vectors.double(), torch.zeros_like(first.vectors)):
        again = top_eigenvalues(problem.loss, problem.model, [problem.batch], 2, start=start)
        assert again.status is Status.OK
        torch.testing.assert_close(again.eigenvalues, first.eigenvalues, rtol=1e-4, atol=0)
    broken = torch.full_like(first.vectors, torch.nan)
    assert top_eigenvalues(problem.loss, problem.model, [problem.batch], 2, start=broken).status is Status.OK


def test_same_seed_same_result(architecture):
    problem = architecture("lstm")
    one, two = (top_eigenvalues(problem.loss, problem.model, [problem.batch], seed=3) for _ in range(2))
    assert torch.equal(one.vectors, two.vectors)
    three = top_eigenvalues(problem.loss, problem.model, [problem.batch], generator=torch.Generator().manual_seed(4))
    assert not torch.equal(one.vectors, three.vectors)
    assert three.eigenvalues.item() == pytest.approx(one.eigenvalues.item(), rel=1e-5)
