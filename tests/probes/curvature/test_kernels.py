"""Kernels that training uses and that differentiate once: each model gives the number, and says by which method.

The oracle is the dense float64 Hessian of an eager copy without checkpoints, or the plain model's own number.
"""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from learnmech.observables import Status
from learnmech.probes.curvature import Choice, HessianOperator, objective_of, top_eigenvalues, top_eigenvalues_of
from learnmech.probes.isolation import FunctionSource, isolated


def measured(loss, model, batch, method="auto", *, twice=True):
    """The top eigenvalue, the method that gave it, and why not a better one."""
    choice = Choice(method)

    def work(pure):
        operator = choice.operator(objective_of(pure, [batch]))
        return top_eigenvalues_of(operator), operator.method

    result, used = isolated(FunctionSource(model, loss), work, twice=twice)
    assert result.status is Status.OK, result.reason
    return result.eigenvalues.item(), used, choice.reason


@pytest.fixture
def compiled():
    """Compiles with a backend that traces both passes and is quick about it."""
    yield lambda module: torch.compile(module, backend="aot_eager")
    torch._dynamo.reset()


@pytest.mark.parametrize("where", ["whole", "submodule"])
def test_compiled_models(architecture, dense_hessian, compiled, where):
    problem = architecture("mlp")
    truth = torch.linalg.eigvalsh(dense_hessian(problem))[-1].item()
    model = compiled(problem.model) if where == "whole" else nn.Sequential(compiled(problem.model))
    cross_entropy(model(problem.batch[0]), problem.batch[1]).backward()  # training has compiled it
    frames = torch._dynamo.utils.counters["frames"]["total"]
    value, method, reason = measured(problem.loss, model, problem.batch)
    assert (value, method, reason) == (pytest.approx(truth, rel=1e-4), "double_backward", "")
    for other in ("finite_differences", "gauss_newton"):
        assert measured(problem.loss, model, problem.batch, other)[1] == other
    assert torch._dynamo.utils.counters["frames"]["total"] == frames, "nothing is compiled for a measurement"
    value, method, reason = measured(problem.loss, model, problem.batch, twice=False)  # the compiled graphs themselves
    assert (value, method) == (pytest.approx(truth, rel=1e-2), "finite_differences")
    assert reason.startswith("double backward: ")


def test_flash_attention(architecture, dense_hessian):
    problem = architecture("transformer")
    truth = torch.linalg.eigvalsh(dense_hessian(problem))[-1].item()
    value, method, _ = measured(problem.loss, problem.model, problem.batch)
    assert (value, method) == (pytest.approx(truth, rel=1e-4), "double_backward")
    value, method, reason = measured(problem.loss, problem.model, problem.batch, twice=False)
    assert (value, method) == (pytest.approx(truth, rel=1e-2), "finite_differences")
    assert "scaled_dot_product_flash_attention" in reason
    math_kernel = measured(problem.loss, problem.model, problem.batch, "gauss_newton")
    flash = measured(problem.loss, problem.model, problem.batch, "gauss_newton", twice=False)
    assert (math_kernel[1], flash[1]) == ("gauss_newton", "gauss_newton_by_differences")
    assert flash[0] == pytest.approx(math_kernel[0], rel=1e-3)


def test_differences_run_the_kernels_of_training(architecture):
    """With twice=False the attention that runs is training's, which may be the only one that fits into memory."""
    problem = architecture("transformer")
    seen = []

    def loss(model, batch):
        q = torch.ones(1, 1, 2, 4, requires_grad=True)
        if (node := scaled_dot_product_attention(q, q, q).grad_fn) is not None:
            seen.append(node.name())
        return problem.loss(model, batch)

    measured(loss, problem.model, problem.batch, "finite_differences", twice=False)
    assert seen
    assert all("Flash" in name for name in seen)
    seen.clear()
    measured(loss, problem.model, problem.batch, "finite_differences")
    assert seen
    assert not any("Flash" in name for name in seen)


class Encoder(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(8, 2)

    def forward(self, x):
        mixed = self.layer(x, x, x, need_weights=False)[0] if isinstance(self.layer, nn.MultiheadAttention) else None
        return self.head((self.layer(x) if mixed is None else x + mixed).mean(1))


@pytest.mark.parametrize("kind", ["attention", "encoder layer"])
def test_multihead_attention(kind):
    torch.manual_seed(1)
    layer = (
        nn.MultiheadAttention(8, 2, batch_first=True)
        if kind == "attention"
        else nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, activation="gelu", batch_first=True)
    )
    model, batch = Encoder(layer), (torch.randn(6, 5, 8), torch.randn(6, 2))

    def loss(m, b):
        return mse_loss(m(b[0]), b[1])

    exact, method, _ = measured(loss, model, batch)
    assert method == "double_backward"
    value, method, reason = measured(loss, model, batch, twice=False)
    assert (value, method) == (pytest.approx(exact, rel=1e-2), "finite_differences")
    assert "not implemented" in reason
    assert measured(loss, model, batch, "gauss_newton")[1] == "gauss_newton"


class Checkpointed(nn.Module):
    """Three layers, the middle one checkpointed in one of the two ways, or not."""

    def __init__(self, reentrant):
        super().__init__()
        torch.manual_seed(5)
        self.first, self.last, self.reentrant = nn.Linear(6, 8), nn.Linear(8, 2), reentrant
        self.body = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2))

    def forward(self, x):
        x = self.first(x)
        x = self.body(x) if self.reentrant is None else checkpoint(self.body, x, use_reentrant=self.reentrant)
        return self.last(x)


def squares(m, b):
    return mse_loss(m(b[0]), b[1])


@pytest.mark.parametrize("method", ["auto", "double_backward", "finite_differences", "gauss_newton"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_models(reentrant, method):
    """Both kinds give the plain model's number. The reentrant kind runs in the other's way for the measurement."""
    torch.manual_seed(6)
    batch = (torch.randn(12, 6), torch.randn(12, 2))
    eager, model = Checkpointed(None), Checkpointed(reentrant)
    torch.manual_seed(7)  # the masks of dropout
    plain = measured(squares, eager, batch, method)
    torch.manual_seed(7)
    found = measured(squares, model, batch, method)
    assert found[1:] == plain[1:]
    assert found[0] == pytest.approx(plain[0], rel=1e-5)
    assert model.body[1].num_batches_tracked == 0
    assert torch.utils.checkpoint.CheckpointFunction.__module__ == "torch.utils.checkpoint"  # as it was


def test_reentrant_checkpoint_of_an_input_passes_no_gradient():
    """As in training: what it encloses gets no gradient then, and that is said instead of a zero."""
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))

    def loss(m, b):
        return mse_loss(m[2](checkpoint(m[:2], b[0], use_reentrant=True)), b[1])

    result = top_eigenvalues(loss, model, [(torch.randn(12, 6), torch.randn(12, 2))])
    assert result.status is Status.UNSUPPORTED
    assert "loss changes with 0.weight, 0.bias, but has no gradient" in result.reason


def test_retained_graphs_recompute_at_their_own_weights():
    """A checkpoint runs again in every product: at w, even if the loss was evaluated elsewhere in between."""
    model = Checkpointed(False).eval()
    batch = (torch.randn(12, 6), torch.randn(12, 2))

    def work(pure):
        objective = objective_of(pure, [batch])
        operator = HessianOperator(objective)
        vector = torch.ones(objective.space.size)
        before = operator.matvec(vector)
        operator.slope(vector, 0.3)
        return before, operator.matvec(vector)

    before, after = isolated(FunctionSource(model, squares), work)
    assert torch.equal(before, after)


@pytest.mark.parametrize("name", ["cdist", "embedding bag", "sparse embedding"])
def test_operations_without_second_derivative(name):
    torch.manual_seed(0)
    if name == "cdist":
        model, x = nn.Linear(3, 3).double(), torch.randn(5, 3, dtype=torch.float64)

        def loss(m, x):
            return torch.cdist(m(x), x + 1).square().mean()

        def plain(m, x):
            return (m(x)[:, None] - (x + 1)[None]).square().sum(-1).mean()
    else:
        sparse = name == "sparse embedding"
        first = nn.Embedding(6, 3, sparse=True) if sparse else nn.EmbeddingBag(6, 3, mode="sum")
        model = nn.Sequential(first, nn.Flatten(), nn.Tanh(), nn.Linear(6 if sparse else 3, 1)).double()
        x = torch.randint(0, 6, (4, 2))

        def loss(m, x):
            return m(x).square().mean()

        def plain(m, x):
            rows = nn.functional.embedding(x, m[0].weight)
            return m[3]((rows.flatten(1) if sparse else rows.sum(1)).tanh()).square().mean()

    truth, exact, _ = measured(plain, model, x)
    assert exact == "double_backward"
    value, method, reason = measured(loss, model, x)
    assert value == pytest.approx(truth, rel=1e-5)
    if method == "double_backward":  # a newer torch may have it
        assert reason == ""
    else:
        assert method == "finite_differences"
        assert reason.startswith("double backward: ")
