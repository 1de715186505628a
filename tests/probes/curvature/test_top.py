"""`top_eigenvalues` beyond the value itself: batches, failures as data, what it leaves out and what it says."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from learnmech.observables import Status
from learnmech.probes.curvature import Agreement, top_eigenvalues

EXACT = "double_backward"
"""Insisted on, where a test is about what exact products refuse; `auto` falls to differences there."""


class Weights(nn.Module):
    """A bare vector of weights, for losses written down by hand."""

    def __init__(self, *values, dtype=torch.float64):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(values, dtype=dtype))


def test_spectrum_one_and_minus_three_gives_one():
    # Peers return -3, the largest in absolute value; stability is decided by the largest algebraic one.
    model = Weights(0.3, -0.2)
    result = top_eigenvalues(lambda m, _: 0.5 * m.w[0] ** 2 - 1.5 * m.w[1] ** 2, model, [None])
    assert result.eigenvalues.tolist() == pytest.approx([1.0])
    assert result.status is Status.OK


def test_batches_of_8_8_and_3_weigh_by_examples(architecture, dense_hessian):
    problem = architecture("mlp").double()
    x, y = torch.randn(19, 6, dtype=torch.float64), torch.randint(0, 3, (19,))
    problem.batch = (x, y)
    whole = top_eigenvalues(problem.loss, problem.model, [(x, y)], tol=1e-10)
    parts = [(x[:8], y[:8]), (x[8:16], y[8:16]), (x[16:], y[16:])]
    for retain in (True, False):
        cut = top_eigenvalues(problem.loss, problem.model, parts, tol=1e-10, retain=retain)
        assert cut.eigenvalues.item() == pytest.approx(whole.eigenvalues.item(), rel=1e-12)
        assert cut.loss == pytest.approx(whole.loss, rel=1e-14)
    assert whole.eigenvalues.item() == pytest.approx(torch.linalg.eigvalsh(dense_hessian(problem))[-1].item(), rel=1e-7)
    named = top_eigenvalues(problem.loss, problem.model, parts, tol=1e-10, weights=[8, 8, 3])
    assert named.eigenvalues.item() == pytest.approx(whole.eigenvalues.item(), rel=1e-12)
    equal = top_eigenvalues(problem.loss, problem.model, parts, tol=1e-10, weights=[1, 1, 1])
    assert abs(equal.eigenvalues.item() / whole.eigenvalues.item() - 1) > 1e-3  # the mistake would be seen


def test_batches_of_any_form(architecture):
    problem = architecture("mlp")
    x, y = problem.batch
    truth = top_eigenvalues(problem.loss, problem.model, [(x, y)]).eigenvalues.item()

    def pops(model, batch):
        labels = batch.pop("labels")  # as training code does; each evaluation gets its own copy
        return cross_entropy(model(batch["inputs"]), labels)

    batch = {"name": "a", "inputs": x, "labels": y}
    assert top_eigenvalues(pops, problem.model, [batch]).eigenvalues.item() == pytest.approx(truth, rel=1e-6)
    assert sorted(batch) == ["inputs", "labels", "name"]


def test_dropout_and_batch_statistics_are_one_fixed_function(architecture):
    problem = architecture("mlp")
    problem.model.train()
    cut = [(problem.batch[0][:8], problem.batch[1][:8]), (problem.batch[0][8:], problem.batch[1][8:])]
    kept = top_eigenvalues(problem.loss, problem.model, cut, check=True)
    built_anew = top_eigenvalues(problem.loss, problem.model, cut, retain=False)
    # Other masks in other evaluations would differ by tens of per cent, and fail the finite differences.
    assert kept.comparison.agreement is Agreement.AGREES
    assert built_anew.eigenvalues.item() == pytest.approx(kept.eigenvalues.item(), rel=1e-5)
    again = top_eigenvalues(problem.loss, problem.model, cut)
    assert torch.equal(again.vectors, kept.vectors)
    torch.rand(1)
    other = top_eigenvalues(problem.loss, problem.model, cut)
    assert abs(other.eigenvalues.item() / kept.eigenvalues.item() - 1) > 1e-3  # the next masks of training


def test_nan_weights_are_flagged(architecture):
    # A peer returns NaN unmarked.
    problem = architecture("lstm")
    with torch.no_grad():
        problem.model.head.bias.fill_(math.nan)
    result = top_eigenvalues(problem.loss, problem.model, [problem.batch])
    assert result.status is Status.NON_FINITE
    assert "loss" in result.reason
    assert not result.converged
    assert result.eigenvalues.isnan().all()
    assert result.products == 1
    assert len(result.vectors) == 0
    # and it does not poison the next measurement
    with torch.no_grad():
        problem.model.head.bias.fill_(0.1)
    after = top_eigenvalues(problem.loss, problem.model, [problem.batch], start=result)
    assert after.status is Status.OK


def test_finite_loss_with_a_non_finite_product_is_flagged():
    model = Weights(0.0, 1.0)
    result = top_eigenvalues(lambda m, _: m.w[0].abs() ** 1.5 + m.w[1] ** 2, model, [None])
    assert math.isfinite(result.loss)
    assert result.status is Status.NON_FINITE
    assert result.eigenvalues.isnan().all()


def test_exhausted_budget_is_flagged_with_bounds(architecture, dense_hessian):
    problem = architecture("mlp")
    truth = torch.linalg.eigvalsh(dense_hessian(problem))
    result = top_eigenvalues(problem.loss, problem.model, [problem.batch], max_products=2)
    assert result.status is Status.NOT_CONVERGED
    assert not result.converged
    assert result.products == 2
    assert "after 2 products" in result.reason
    theta, bound = result.eigenvalues.item(), result.residuals.item()
    assert theta <= truth[-1] * (1 + 1e-6)
    assert (truth - theta).abs().min() <= bound


def test_linear_loss_has_no_curvature():
    result = top_eigenvalues(lambda m, x: (x @ m.w).mean(), Weights(1.0, 2.0), [torch.ones(4, 2, dtype=torch.float64)])
    assert result.eigenvalues.item() == 0.0
    assert result.residuals.item() == 0.0
    assert result.converged


def test_parameters_outside_the_loss_are_reported_not_hidden(architecture):
    problem = architecture("mlp")
    alone = top_eigenvalues(problem.loss, problem.model, [problem.batch])
    problem.model.spare = nn.Linear(2, 2)
    problem.model.frozen = nn.Linear(2, 2).requires_grad_(False)

    def loss(model, batch):
        return cross_entropy(nn.Sequential(*list(model)[:6])(batch[0]), batch[1])

    both = top_eigenvalues(loss, problem.model, [problem.batch])
    assert both.unused == ("spare.weight", "spare.bias")
    assert both.eigenvalues.item() == pytest.approx(alone.eigenvalues.item(), rel=1e-5)
    assert both.vectors.shape[1] == alone.vectors.shape[1] + 6
    assert both.vectors[0, -6:].abs().max() < 1e-3


def test_loss_that_forgets_the_parameters_is_not_zero_curvature(architecture):
    problem = architecture("mlp")
    result = top_eigenvalues(lambda m, b: problem.loss(m, b).detach(), problem.model, [problem.batch])
    assert result.status is Status.UNSUPPORTED
    assert result.eigenvalues.isnan().all()
    other = nn.Linear(6, 3)
    result = top_eigenvalues(lambda _, b: problem.loss(other, b), problem.model, [problem.batch])
    assert result.status is Status.UNSUPPORTED
    assert "no parameter has a gradient" in result.reason


def test_sparse_gradients_are_refused_with_a_reason():
    model = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Flatten(), nn.Linear(6, 1))
    result = top_eigenvalues(lambda m, x: m(x).square().mean(), model, [torch.randint(0, 5, (4, 2))], method=EXACT)
    assert result.status is Status.UNSUPPORTED
    assert "sparse" in result.reason


@pytest.mark.parametrize("name", ["cdist", "embedding_bag"])
def test_kernels_without_second_derivative_are_refused_with_a_reason(name):
    if name == "cdist":
        model, x = nn.Linear(3, 3), torch.randn(5, 3)
        result = top_eigenvalues(lambda m, x: torch.cdist(m(x), x).square().mean(), model, [x], method=EXACT)
    else:
        model, x = nn.EmbeddingBag(6, 3, mode="max"), torch.randint(0, 6, (4, 2))
        result = top_eigenvalues(lambda m, x: m(x).square().mean(), model, [x], method=EXACT)
    assert result.status is Status.UNSUPPORTED
    assert result.reason
    assert result.eigenvalues.isnan().all()


def test_out_of_memory_reaches_the_caller():
    """Whoever governs memory must see it, also when it strikes in the second differentiation."""

    class Greedy(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            raise torch.OutOfMemoryError("no memory left")

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**2

        @staticmethod
        def backward(ctx, g):
            return Greedy.apply(2 * g * ctx.saved_tensors[0])

    with pytest.raises(torch.OutOfMemoryError):
        top_eigenvalues(lambda m, _: Square.apply(m.w).sum(), Weights(1.0, 2.0), [None])


def test_loss_that_is_not_a_scalar_is_refused_with_a_reason(architecture):
    problem = architecture("mlp")
    result = top_eigenvalues(lambda m, b: m(b[0]), problem.model, [problem.batch])
    assert result.status is Status.UNSUPPORTED
    assert "(16, 3)" in result.reason


def test_errors_of_the_user_reach_the_user(architecture):
    problem = architecture("mlp")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        top_eigenvalues(problem.loss, problem.model, [(torch.randn(4, 5), torch.zeros(4, dtype=torch.long))])
    with pytest.raises(ValueError, match="no batches came"):
        top_eigenvalues(problem.loss, problem.model, [])
    with pytest.raises(ValueError, match=r"pass weights=\[number of examples"):
        top_eigenvalues(lambda m, _: m.w.square().sum(), Weights(1.0), ["a", "b"])
    with pytest.raises(ValueError, match="expected 2 positive numbers"):
        top_eigenvalues(problem.loss, problem.model, [problem.batch] * 2, weights=[1, 0])
    with pytest.raises(ValueError, match="k is 0"):
        top_eigenvalues(problem.loss, problem.model, [problem.batch], 0)
    with pytest.raises(ValueError, match="another model"):
        top_eigenvalues(problem.loss, problem.model, [problem.batch], start=torch.ones(5))


def test_optimizer_that_has_not_stepped_says_not_yet(architecture):
    problem = architecture("mlp")
    adam = torch.optim.Adam(problem.model.parameters())
    result = top_eigenvalues(problem.loss, problem.model, [problem.batch], preconditioner=adam)
    assert result.status is Status.UNSUPPORTED
    assert result.reason.startswith("not yet")
    assert result.products == 0
    sgd = torch.optim.SGD(problem.model.parameters(), lr=1.0)
    assert "SGD" in top_eigenvalues(problem.loss, problem.model, [problem.batch], preconditioner=sgd).reason


def test_precision_of_the_model_is_kept(architecture):
    problem = architecture("mlp")
    assert top_eigenvalues(problem.loss, problem.model, [problem.batch]).vectors.dtype == torch.float32
    half = problem.model.bfloat16()
    result = top_eigenvalues(problem.loss, half, [(problem.batch[0].bfloat16(), problem.batch[1])])
    assert result.vectors.dtype == torch.float32
    assert result.comparison.agreement is not Agreement.DISAGREES
    assert result.status is Status.OK


def test_arguments_of_another_kind_are_explained():
    model, batch = torch.nn.Linear(2, 1, bias=False), torch.ones(3, 2)

    def loss(m, x):
        return m(x).square().mean()

    with pytest.raises(TypeError, match=r"start is 'x'; expected the result of an earlier measurement"):
        top_eigenvalues(loss, model, [batch], start="x")
    with pytest.raises(TypeError, match=r"preconditioner is 'adam'; expected the optimizer itself"):
        top_eigenvalues(loss, model, [batch], preconditioner="adam")
    with pytest.raises(TypeError, match=r"batches is a list_iterator; .* list\(batches\)"):
        top_eigenvalues(loss, model, iter([batch]))
    with pytest.raises(ValueError, match=r"k is 1 at each end; .* 1 parameters .* which=.largest."):
        top_eigenvalues(loss, torch.nn.Linear(1, 1, bias=False), [batch[:, :1]], which="both")
