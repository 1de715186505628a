"""Second derivatives that are silently wrong are flagged; kinks, dropout and half precision are not called wrong."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from learnmech.observables import Status
from learnmech.probes.curvature import Agreement, top_eigenvalues


class Detached(torch.autograd.Function):
    """x^2 with a backward pass that forgets that its input depends on x, and leaves no trace of it."""

    @staticmethod
    def forward(ctx, x):
        ctx.x = x.detach()
        return x**2

    @staticmethod
    def backward(ctx, g):
        return 2 * g * ctx.x


class Once(torch.autograd.Function):
    """The same, marked honestly as differentiable once."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("function", [Detached, Once])
@pytest.mark.parametrize("inner", [False, True])
def test_wrong_second_derivatives_are_flagged(dtype, function, inner):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2)).to(dtype)
    x = torch.randn(12, 5, dtype=dtype)

    def loss(m, x):
        hidden = function.apply(m(x))
        return (hidden**2 if inner else hidden).mean()

    result = top_eigenvalues(loss, model, [x])
    assert result.status is Status.UNSUPPORTED
    assert "second derivative" in result.reason
    right = top_eigenvalues(lambda m, x: (m(x) ** 4 if inner else m(x) ** 2).mean(), model, [x])
    assert right.status is Status.OK
    assert right.comparison.agreement is Agreement.AGREES


def _relu_networks():
    yield "mlp", nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
    yield (
        "cnn",
        nn.Sequential(
            nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3),
        ),
    )  # fmt: skip


@pytest.mark.parametrize("index", range(2))
def test_kinks_are_not_called_wrong(index):
    """ReLU drops its kinks in autograd, finite differences cross them: they disagree, and scatter while doing so."""
    torch.manual_seed(1)
    _, model = list(_relu_networks())[index]
    x, y = torch.randn(96, 16), torch.randint(0, 3, (96,))

    def loss(m, batch):
        return cross_entropy(m(batch[0]), batch[1])

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    seen = set()
    for step in range(60):
        if step % 6 == 0:
            for size in (8, 32, 96):
                result = top_eigenvalues(loss, model, [(x[:size], y[:size])], tol=1e-2)
                assert result.comparison.agreement is not Agreement.DISAGREES, result.comparison
                assert result.status is Status.OK
                seen.add(result.comparison.agreement)
        optimizer.zero_grad()
        loss(model, (x, y)).backward()
        optimizer.step()
    assert Agreement.INCONCLUSIVE in seen  # so the networks do put the rule to the test


def test_half_precision_is_not_called_wrong():
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 3))
    x, y = torch.randn(64, 16), torch.randint(0, 3, (64,))

    def mixed(m, batch):
        with torch.autocast("cpu", torch.bfloat16):
            return cross_entropy(m(batch[0]), batch[1])

    exact = top_eigenvalues(lambda m, b: cross_entropy(m(b[0]), b[1]), model, [(x, y)])
    result = top_eigenvalues(mixed, model, [(x, y)])
    assert result.status is Status.OK
    assert result.eigenvalues.item() == pytest.approx(exact.eigenvalues.item(), rel=2e-2)


def test_check_can_be_left_out(architecture):
    problem = architecture("mlp")
    calls = []

    def loss(model, batch):
        calls.append(1)
        return problem.loss(model, batch)

    result = top_eigenvalues(loss, problem.model, [problem.batch], check=False)
    assert result.comparison.agreement is Agreement.SKIPPED
    assert len(calls) == 1  # the graph of one evaluation serves all products
    top_eigenvalues(loss, problem.model, [problem.batch])
    assert len(calls) == 1 + 1 + 2
