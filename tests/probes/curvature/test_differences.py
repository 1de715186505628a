"""Products by differences of gradients: 1 % on smooth networks, and their own error stated where they are not."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from learnmech.observables import Status
from learnmech.probes.curvature import (
    Agreement,
    HessianOperator,
    NonFinite,
    Objective,
    Scaled,
    lanczos,
    objective_of,
    top_eigenvalues,
)
from learnmech.probes.curvature.check import Comparison
from learnmech.probes.curvature.operators import DifferenceOperator
from learnmech.probes.curvature.operators.account import LOOKS
from learnmech.probes.curvature.trust import judged, widened
from learnmech.probes.isolation import FunctionSource, isolated

SMOOTH = ("mlp", "cnn", "transformer", "lstm")


def _trained(problem, steps):
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        problem.loss(problem.model, problem.batch).backward()
        optimizer.step()


def _within(problem, work):
    return isolated(FunctionSource(problem.model, problem.loss), lambda loss: work(objective_of(loss, [problem.batch])))


@pytest.mark.parametrize("steps", [0, 60])
@pytest.mark.parametrize("kind", SMOOTH)
def test_products_agree_with_the_dense_hessian_and_state_their_error(architecture, dense_hessian, kind, steps):
    """The dense matrix is of a float64 copy; products are in float32 along random vectors, the gradient and the top."""
    problem = architecture(kind)
    _trained(problem, steps)
    hessian = dense_hessian(problem)
    values, vectors = torch.linalg.eigh(hessian)
    norm = values.abs().max()

    def work(objective):
        operator = DifferenceOperator(objective)
        generator = torch.Generator().manual_seed(0)
        rows = [torch.randn(len(hessian), generator=generator) for _ in range(6)]
        rows += [objective.gradient_along(), vectors[:, -1].float(), 1e-3 * vectors[:, 0].float()]
        errors = []
        for row in rows:
            product = operator.matvec(row)
            errors.append((product.double() - hessian @ row.double()).norm() / row.norm() / norm)
        return operator, max(errors).item()

    operator, worst = _within(problem, work)
    assert worst < 1e-3, "1 % is promised"
    assert worst / 2 < operator.error < 10 * max(worst, 1e-5), "and the account of it is honest"
    assert operator.products == 9
    assert operator.gradients <= 2 * 9 + 1 + 2 * LOOKS


@pytest.mark.parametrize("kind", SMOOTH)
def test_eigenvalues_agree_with_the_dense_hessian(architecture, dense_hessian, kind):
    problem = architecture(kind)
    truth = torch.linalg.eigvalsh(dense_hessian(problem))
    result = top_eigenvalues(problem.loss, problem.model, [problem.batch], method="finite_differences")
    assert result.status is Status.OK, result.reason
    assert result.comparison.agreement is Agreement.AGREES
    assert result.eigenvalues.item() == pytest.approx(truth[-1].item(), rel=1e-3)
    several = top_eigenvalues(problem.loss, problem.model, [problem.batch], 3, tol=1e-2, method="finite_differences")
    assert several.status is Status.OK, several.reason
    assert several.eigenvalues.tolist() == pytest.approx(truth[-3:].flip(0).tolist(), rel=1e-2)


def test_steps_in_float64_give_eight_digits(architecture, dense_hessian):
    problem = architecture("mlp").double()
    hessian = dense_hessian(problem, h=1e-4)
    vector = torch.randn(len(hessian), dtype=torch.float64)

    def work(objective):
        operator = DifferenceOperator(objective)
        return operator.matvec(vector), HessianOperator(objective).matvec(vector), operator.error

    product, exact, error = _within(problem, work)
    assert error < 1e-7
    torch.testing.assert_close(product, exact, rtol=0, atol=1e-7 * exact.norm().item())
    torch.testing.assert_close(product, hessian @ vector, rtol=0, atol=1e-5 * exact.norm().item())


def test_scaled_differences_state_the_error_of_the_scaled_matrix(architecture):
    """S over five decades: what is a small error of H may be a large one of S H S."""
    problem = architecture("transformer")

    def work(objective):
        generator = torch.Generator().manual_seed(3)
        scale = torch.exp(2 * torch.randn(objective.space.size, generator=generator))
        exact, operator = Scaled(HessianOperator(objective), scale), DifferenceOperator(objective, scale=scale)
        errors = []

        def product(v):
            result = operator.matvec(v)
            errors.append((result - exact.matvec(v)).norm().item())
            return result

        def draw():
            return torch.randn(objective.space.size, generator=generator)

        pairs = lanczos(product, draw()[None], tol=1e-3, max_products=20, draw=draw)
        truth = lanczos(exact.matvec, draw()[None], tol=1e-6, max_products=60, draw=draw)
        torch.testing.assert_close(operator.gradient(), exact.gradient())
        return pairs.values.item(), truth.values.item(), max(errors), operator

    value, truth, worst, operator = _within(problem, work)
    assert value == pytest.approx(truth, rel=1e-3)
    assert worst / 2 < operator.uncertainty < 10 * worst


def _relu(width=128):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    return model, (torch.randn(256, 64), torch.randint(0, 10, (256,)))


def _classes(model, batch):
    return cross_entropy(model(batch[0]), batch[1])


def _autocast(model, batch):
    with torch.autocast("cpu", torch.bfloat16):
        return _classes(model, batch)


def _kinked():
    return (_classes, *_relu())


def _mixed():
    model, batch = _relu()
    for index in (1, 3):
        model[index] = nn.Tanh()
    return _autocast, model, batch


def _half():
    _, model, (x, y) = _mixed()
    return _classes, model.bfloat16(), (x.bfloat16(), y)


@pytest.mark.parametrize("make", [_kinked, _mixed, _half])
def test_readings_that_cannot_be_trusted_are_marked(make):
    loss, model, batch = make()
    result = top_eigenvalues(loss, model, [batch], method="finite_differences", max_products=20)
    assert result.status is Status.UNDETERMINED
    assert "%" in result.reason or "scatter" in result.reason
    assert "kinks" in result.reason
    unchecked = top_eigenvalues(loss, model, [batch], method="finite_differences", max_products=20, check=False)
    assert unchecked.status is Status.UNDETERMINED
    assert "are off by about" in unchecked.reason
    # exact products of the same model are trusted
    assert top_eigenvalues(loss, model, [batch], tol=1e-2).status is Status.OK


@pytest.mark.parametrize("make", [_kinked, _mixed])
def test_the_stated_error_is_no_smaller_than_the_error(make):
    """Against exact products with the same kernels, along random vectors and the gradient."""
    loss, model, batch = make()

    def work(pure):
        objective = objective_of(pure, [batch])
        exact, operator = HessianOperator(objective), DifferenceOperator(objective)
        gradient = objective.space.unit(objective.gradient_along())
        operator.calibrate(gradient)
        generator = torch.Generator().manual_seed(2)
        vectors = [gradient, *(objective.space.unit(objective.space.draw(generator)) for _ in range(3))]
        errors = [(operator.matvec(v) - exact.matvec(v)).norm().item() for v in vectors]
        return max(errors), operator

    worst, operator = isolated(FunctionSource(model, loss), work)
    assert operator.uncertainty > worst / 2
    assert operator.error > 0.01


def test_bounds_are_widened_by_the_error(architecture):
    problem = architecture("mlp")

    def work(objective):
        operator, exact = DifferenceOperator(objective, step=3e-2), HessianOperator(objective)  # on purpose too long
        generator = torch.Generator().manual_seed(2)

        def draw():
            return objective.space.draw(generator)

        pairs = lanczos(operator.matvec, draw()[None], tol=1e-6, max_products=60, draw=draw)
        true = (exact.matvec(pairs.vectors[0]) - pairs.values[0] * pairs.vectors[0]).norm().item()
        assert pairs.residuals.item() < true < widened(operator, pairs.residuals).item()
        assert torch.equal(widened(exact, pairs.residuals), pairs.residuals)
        assert judged(operator, pairs, Comparison(Agreement.SKIPPED), 1e-3)[0] in (Status.OK, Status.UNDETERMINED)

    _within(problem, work)


def test_products_of_any_length_are_proportional(architecture):
    problem = architecture("mlp")

    def work(objective):
        operator = DifferenceOperator(objective)
        vector = torch.randn(objective.space.size, generator=torch.Generator().manual_seed(1))
        one = operator.matvec(vector)
        for factor in (1e-8, 1e8):
            torch.testing.assert_close(operator.matvec(factor * vector) / factor, one, rtol=1e-3, atol=1e-5)
        assert operator.matvec(torch.zeros_like(vector)).abs().max() == 0
        assert operator.matvec(torch.full_like(vector, torch.nan)).isnan().all()
        with pytest.raises(ValueError, match="expected"):
            operator.matvec(vector[1:])

    _within(problem, work)


def test_linear_quadratic_and_zero_weights_are_exact_to_rounding():
    weights = torch.zeros(3, dtype=torch.float64, requires_grad=True)  # |w| = 0: no scale to take a step from
    quadratic = DifferenceOperator(Objective([weights], [lambda p: (p[0] ** 2 * torch.tensor([1.0, 2.0, -3.0])).sum()]))
    product = quadratic.matvec(torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(product, torch.tensor([2.0, 4.0, -6.0], dtype=torch.float64))
    linear = DifferenceOperator(Objective([weights], [lambda p: p[0].sum()]))
    assert linear.matvec(torch.ones(3, dtype=torch.float64)).abs().max() == 0
    assert linear.error == 0
    nan = DifferenceOperator(Objective([weights], [lambda p: p[0].sum() / 0 * 0]))
    with pytest.raises(NonFinite):
        nan.matvec(torch.ones(3, dtype=torch.float64))


def test_parameters_are_not_written(architecture):
    problem = architecture("lstm")
    before = copy.deepcopy(problem.model.state_dict())
    top_eigenvalues(problem.loss, problem.model, [problem.batch], method="finite_differences")
    assert all(torch.equal(a, b) for a, b in zip(before.values(), problem.model.state_dict().values(), strict=True))
    assert all(p.grad is None for p in problem.model.parameters())
