"""Second derivatives that are silently wrong are flagged; kinks, dropout and half precision are not called wrong."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from learnmech.observables import Status
from learnmech.probes.curvature import Agreement, HessianOperator, Objective, top_eigenvalues, top_eigenvalues_of


def _wrong(function, inner, dtype):
    """A network with a wrong or missing second derivative, the same loss written honestly, and a batch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2)).to(dtype)
    x = torch.randn(12, 5, dtype=dtype)

    def loss(m, x):
        hidden = function.apply(m(x))
        return (hidden**2 if inner else hidden).mean()

    return loss, lambda m, x: (m(x) ** 4 if inner else m(x) ** 2).mean(), model, x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("function", ["detached", "once"])
@pytest.mark.parametrize("inner", [False, True])
def test_wrong_second_derivatives_are_flagged(dtype, function, inner, squares):
    loss, honest, model, x = _wrong(squares[function], inner, dtype)
    result = top_eigenvalues(loss, model, [x], method="double_backward")
    assert result.status is Status.UNSUPPORTED
    assert "second derivative" in result.reason
    right = top_eigenvalues(honest, model, [x])
    assert right.status is Status.OK
    assert right.comparison.agreement is Agreement.AGREES
    # and differences of gradients give the number all the same
    found = top_eigenvalues(loss, model, [x])
    assert found.status is Status.OK, found.reason
    assert found.eigenvalues.item() == pytest.approx(right.eigenvalues.item(), rel=1e-3)


def test_wrong_second_derivative_is_flagged_at_the_top_vector_too(squares):
    """The same check stands at the end, for what a probe along one direction did not show."""
    loss, _, model, x = _wrong(squares["detached"], False, torch.float64)
    parameters = [p.detach().requires_grad_() for p in model.parameters()]
    names = [name for name, _ in model.named_parameters()]
    objective = Objective(
        parameters,
        [lambda p: loss(lambda x: torch.func.functional_call(model, dict(zip(names, p, strict=True)), x), x)],
    )
    result = top_eigenvalues_of(HessianOperator(objective))
    assert result.status is Status.UNSUPPORTED
    assert "finite" not in result.reason
    assert "by double backward" in result.reason
    assert result.comparison.agreement is Agreement.DISAGREES


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
    without = len(calls)
    assert without == 2 + 1 + 1 + 2  # repeatable, the gradient, one graph for all products, the probe of the method
    calls.clear()
    top_eigenvalues(loss, problem.model, [problem.batch])
    assert len(calls) == without + 2


@pytest.mark.parametrize("seed", range(8))
def test_kinks_in_a_convolution_are_not_called_a_wrong_derivative(seed):
    """A step crosses so many kinks of a ReLU and max-pooling network that differences agree, some per cent off."""
    torch.manual_seed(seed)
    layers = []
    for a, b in ((3, 16), (16, 32)):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 16, 10))
    batch = (torch.randn(32, 3, 16, 16), torch.randint(10, (32,)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()
    found = top_eigenvalues(lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]), model, [batch], accuracy=0.01)
    assert found.status == "ok", found.reason
    assert found.comparison.agreement in {Agreement.AGREES, Agreement.INCONCLUSIVE}
