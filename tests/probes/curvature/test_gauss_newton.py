"""Gauss-Newton products against a dense J' H_z J: J by differences of outputs in float64, H_z in closed form.

Neither part of the oracle differentiates anything: outputs are evaluated at moved weights, and the second derivatives
of squares, cross-entropy and logistic loss are written down.
"""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from learnmech.observables import Status
from learnmech.probes.curvature import objective_of, top_eigenvalues
from learnmech.probes.curvature.operators import GaussNewtonOperator
from learnmech.probes.isolation import FunctionSource, isolated


def dense_jacobian(model, forward, batch, h=1e-5):
    """dz/dw in float64 by central differences of the outputs. [outputs, parameters]"""
    twin = copy.deepcopy(model).double()
    batch = tuple(t.double() if t.is_floating_point() else t for t in batch)
    columns = []
    with torch.no_grad():
        for parameter in twin.parameters():
            flat = parameter.view(-1)
            for index in range(len(flat)):
                kept = flat[index].item()
                flat[index] = kept + h
                ahead = forward(twin, batch).flatten().clone()
                flat[index] = kept - h
                columns.append((ahead - forward(twin, batch).flatten()) / (2 * h))
                flat[index] = kept
        z = forward(twin, batch)
    return torch.stack(columns, dim=1), z


def of_squares(z, _):
    return torch.eye(z.numel(), dtype=z.dtype) * 2 / z.numel()


def of_classes(z, labels, smooth=0.0, ignored=-100):
    """Rows p: diag(p) - p p', over the number of labels that count. Smoothing is linear in z and drops out."""
    rows, classes = z.flatten(0, -2), z.shape[-1]
    counted = labels.flatten() != ignored
    blocks = [
        (torch.diag(p) - torch.outer(p, p)) * float(c) / counted.sum()
        for p, c in zip(rows.softmax(-1), counted, strict=True)
    ]
    assert blocks[0].shape == (classes, classes)
    return torch.block_diag(*blocks)


def of_bits(z, _):
    p = z.flatten().sigmoid()
    return torch.diag(p * (1 - p)) / z.numel()


def squares(m, b):
    return mse_loss(m(b[0]), b[1])


def classes(m, b):
    return cross_entropy(m(b[0]).flatten(0, -2), b[1].flatten())


def smoothed(m, b):
    return cross_entropy(m(b[0]), b[1], label_smoothing=0.1, ignore_index=1)


def bits(m, b):
    return binary_cross_entropy_with_logits(m(b[0]), b[1])


def network(activation=nn.Tanh):
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(5, 7), activation(), nn.Linear(7, 6), activation(), nn.Linear(6, 3))


X, Y = torch.randn(16, 5, generator=torch.Generator().manual_seed(1)), torch.arange(16) % 3
REAL = torch.randn(16, 3, generator=torch.Generator().manual_seed(2))
CASES = {
    "squares, several outputs": (squares, of_squares, (X, REAL)),
    "cross-entropy": (classes, of_classes, (X, Y)),
    "label smoothing, ignored labels": (smoothed, lambda z, y: of_classes(z, y, ignored=1), (X, Y)),
    "logistic": (bits, of_bits, (X, (REAL > 0).float())),
}


def dense(model, outputs_hessian, batch):
    jacobian, z = dense_jacobian(model, lambda m, b: m(b[0]), batch)
    return jacobian.T @ outputs_hessian(z, batch[1]) @ jacobian


def matrix(loss, model, batches, *, weights=None, **options):
    """The operator as a dense matrix, column by column."""

    def work(pure):
        objective = objective_of(pure, batches, weights=weights)
        operator = GaussNewtonOperator(objective, **options)
        eye = torch.eye(objective.space.size, dtype=objective.space.dtype)
        return torch.stack([operator.matvec(row) for row in eye]).double(), operator

    return isolated(FunctionSource(model, loss), work)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("differences", [False, True])
def test_matrix_is_the_dense_one(name, differences):
    loss, outputs_hessian, batch = CASES[name]
    model = network().double()
    batch = tuple(t.double() if t.is_floating_point() else t for t in batch)
    truth = dense(model, outputs_hessian, batch)
    found, operator = matrix(loss, model, [batch], differences=differences)
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-8 * truth.abs().max().item())
    assert operator.method == ("gauss_newton_by_differences" if differences else "gauss_newton")
    assert (operator.error > 0) is differences
    assert operator.error < 1e-7


@pytest.mark.parametrize("kind", ["mlp", "cnn", "transformer", "lstm"])
def test_top_eigenvalue_of_four_architectures(architecture, kind):
    problem = architecture(kind)
    start = slice(None, -1) if kind == "transformer" else slice(None)
    inputs = problem.batch[0][:, start] if kind == "transformer" else problem.batch[0]
    target = problem.batch[0][:, 1:] if kind == "transformer" else problem.batch[1]
    truth = dense(problem.model, of_squares if kind == "lstm" else of_classes, (inputs, target))
    result = top_eigenvalues(problem.loss, problem.model, [problem.batch], method="gauss_newton")
    assert result.status is Status.OK, result.reason
    assert result.eigenvalues.item() == pytest.approx(torch.linalg.eigvalsh(truth)[-1].item(), rel=1e-4)
    hessian = top_eigenvalues(problem.loss, problem.model, [problem.batch]).eigenvalues.item()
    assert abs(result.eigenvalues.item() / hessian - 1) > 1e-4  # another matrix, and it shows


@pytest.mark.parametrize("differences", [False, True])
@pytest.mark.parametrize("retain", [False, True])
def test_batches_of_8_8_and_3_weigh_by_examples(differences, retain):
    model = network().double()
    x, y = torch.randn(19, 5, dtype=torch.float64), torch.arange(19) % 3
    truth = dense(model, of_classes, (x, y))
    parts = [(x[:8], y[:8]), (x[8:16], y[8:16]), (x[16:], y[16:])]
    found, operator = matrix(classes, model, parts, differences=differences, retain=retain)
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-8 * truth.abs().max().item())
    assert operator.loss == pytest.approx(classes(model, (x, y)).item())
    equal, _ = matrix(classes, model, parts, weights=[1, 1, 1], differences=differences)
    assert (equal - truth).abs().max() > 1e-3 * truth.abs().max()  # the mistake would be seen


def test_scale_and_gradient():
    model = network().double()
    batch = (X.double(), REAL.double())
    scale = torch.rand(sum(p.numel() for p in model.parameters()), dtype=torch.float64) + 0.1
    truth = scale[:, None] * dense(model, of_squares, batch) * scale
    for differences in (False, True):
        found, operator = matrix(squares, model, [batch], scale=scale, differences=differences)
        torch.testing.assert_close(found, truth, rtol=0, atol=1e-8 * truth.abs().max().item())
        assert torch.equal(operator.moved(scale), scale * scale)


@dataclass
class Answer:
    """What a Hugging Face model returns: its loss beside its logits, and states that lead to them."""

    loss: Tensor
    logits: Tensor
    hidden: tuple[Tensor, ...] = ()


class Wrapped(nn.Module):
    """A network that returns its outputs in some form."""

    def __init__(self, form):
        super().__init__()
        self.body, self.head, self.form = network()[:4], network()[4], form

    def forward(self, x, y=None):
        hidden = self.body(x)
        logits = self.head(hidden)
        if self.form == "answer":
            return Answer(cross_entropy(logits, y), logits, (x, hidden))
        if self.form == "tuple":
            return logits[:, :2], [hidden, logits[:, 2:]]
        return {"hidden": hidden, "logits": logits} if self.form == "dict" else cross_entropy(logits, y)


def halves(m, b):
    """The mean of two calls, each on every other example."""
    parts = (b[0][::2], b[1][::2]), (b[0][1::2], b[1][1::2])
    return sum(cross_entropy(m.head(m.body(x)), y) for x, y in parts) / 2


LOSSES = {
    "answer": lambda m, b: m(*b).loss,
    "tuple": lambda m, b: cross_entropy(torch.cat([(z := m(b[0]))[0], z[1][1]], 1), b[1]),
    "dict": lambda m, b: nn.CrossEntropyLoss()(m(b[0])["logits"], b[1]),
    "loss": lambda m, b: m(*b),
    "submodules": lambda m, b: cross_entropy(m.head(m.body(b[0])), b[1]),
    "twice": halves,
}


@pytest.mark.parametrize("form", LOSSES)
def test_outputs_are_found_wherever_they_are(form):
    model = Wrapped(form).double()
    batch = (X.double(), Y)
    jacobian, z = dense_jacobian(model, lambda m, b: m.head(m.body(b[0])), batch)
    truth = jacobian.T @ of_classes(z, Y) @ jacobian
    for differences in (False, True):
        found, _ = matrix(LOSSES[form], model, [batch], differences=differences)
        torch.testing.assert_close(found, truth, rtol=0, atol=1e-8 * truth.abs().max().item())


def penalised(m, b):
    return classes(m, b) + 0.1 * sum(p.square().sum() for p in m.parameters())


def not_convex(m, b):
    return (m(b[0]).sin() * b[1][:, None]).mean()


def deeply_supervised(m, b):
    out = m(b[0])
    return cross_entropy(out["logits"], b[1]) + out["hidden"].square().mean()


def linear(m, b):
    return m(b[0]).mean()


def without_modules(m, b):
    return (b[0] @ m[0].weight.T).square().mean()


@pytest.mark.parametrize(
    ("loss", "model", "words"),
    [
        (penalised, network(), "past the outputs"),
        (not_convex, network(), "not convex"),
        (deeply_supervised, Wrapped("dict"), "depend on one another"),
        (linear, network(), "linear in the outputs"),
        (without_modules, network(), "no module was called"),
    ],
)
def test_what_is_no_convex_function_of_outputs_is_refused_with_a_reason(loss, model, words):
    result = top_eigenvalues(loss, model, [(X, Y)], method="gauss_newton")
    assert result.status is Status.UNSUPPORTED
    assert words in result.reason
    assert result.eigenvalues.isnan().all()


class Once(torch.autograd.Function):
    """tanh, honestly marked as differentiable once."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.tanh())
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g * (1 - ctx.saved_tensors[0] ** 2)


class Hidden(Once):
    """tanh with a backward pass that leaves no trace of what it did with the incoming gradient."""

    @staticmethod
    def backward(ctx, g):
        return g.detach() * (1 - ctx.saved_tensors[0] ** 2) + 0 * g


class Custom(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function.apply(x)


@pytest.mark.parametrize("function", [Once, Hidden])
def test_networks_that_differentiate_once_are_measured_by_differences_of_outputs(function):
    """Where J v by differentiating J' would fail, or be silently wrong, it comes from outputs at moved weights."""
    model = network().double()
    batch = (X.double(), Y)
    truth = dense(model, of_classes, batch)
    model[1], model[3] = Custom(function), Custom(function)
    found, operator = matrix(classes, model, [batch])
    assert operator.method == "gauss_newton_by_differences"
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-8 * truth.abs().max().item())
    assert operator.error < 1e-7


def test_relu_networks_have_a_gauss_newton_matrix():
    """Kinks have no second derivative; the Gauss-Newton matrix asks for none."""
    model = network(nn.ReLU)
    truth = dense(model, of_classes, (X, Y))
    result = top_eigenvalues(classes, model, [(X, Y)], method="gauss_newton")
    assert result.status is Status.OK
    assert result.eigenvalues.item() == pytest.approx(torch.linalg.eigvalsh(truth)[-1].item(), rel=1e-4)


def test_reading_outputs_leaves_no_hook_behind():
    hooks = torch.nn.modules.module._global_forward_hooks
    before = len(hooks)
    top_eigenvalues(classes, network(), [(X, Y)], method="gauss_newton")
    with pytest.raises(ZeroDivisionError):
        top_eigenvalues(lambda m, b: m(b[0]).mean() * (1 / 0), network(), [(X, Y)], method="gauss_newton")
    assert len(hooks) == before


def test_a_vector_of_another_length_is_an_error():
    with pytest.raises(ValueError, match="expected"):
        isolated(
            FunctionSource(network(), classes),
            lambda pure: GaussNewtonOperator(objective_of(pure, [(X, Y)])).matvec(torch.ones(3)),
        )
