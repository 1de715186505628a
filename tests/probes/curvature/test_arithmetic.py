"""Half precision in training: curvature is that of the function, in float32; where that fails, it states its rounding.

Oracle: the same model in float64, on inputs of float64; its eigenvalues converged to 1e-6.
"""

import copy

import pytest
import torch
from torch import nn
from torch.amp.autocast_mode import autocast
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from learnmech.probes.curvature import Choice, objective_of, top_eigenvalues
from learnmech.probes.isolation import FunctionSource, isolated

HALVES = [torch.bfloat16, torch.float16]


def plain(m, b):
    return cross_entropy(m(b[0]).float() if m[0].weight.dtype != torch.float64 else m(b[0]), b[1])


def mixed(dtype):
    def loss(m, b):
        with torch.autocast("cpu", dtype):
            z = m(b[0])
        return cross_entropy(z.float(), b[1])

    return loss


def classifier(seed=0, *layers):
    """An MLP that has been trained a little, and a batch."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), *layers, nn.BatchNorm1d(16), nn.Linear(16, 3))
    x = torch.randn(64, 8)
    batch = (x, (x[:, :3] + 0.3 * torch.randn(64, 3)).argmax(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(30):
        optimizer.zero_grad()
        plain(model, batch).backward()
        optimizer.step()
    return model, batch


def truth(model, batch):
    twin = copy.deepcopy(model).double()
    found = top_eigenvalues(plain, twin, [(batch[0].double(), batch[1])], tol=1e-6, max_products=200)
    assert found.status == "ok"
    return found.eigenvalues.item()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("how", ["inside", "around", "weights"])
def test_curvature_is_that_of_the_function(how, dtype):
    model, batch = classifier()
    if how == "weights":
        model = model.to(dtype)
        loss = lambda m, b: cross_entropy(m(b[0].to(dtype)).float(), b[1])
    else:
        loss = mixed(dtype) if how == "inside" else plain
    before = [t.clone() for t in model.state_dict().values()]
    entered = autocast.__enter__
    with torch.autocast("cpu", dtype, enabled=how == "around"):
        found = top_eigenvalues(loss, model, [batch], tol=1e-4, max_products=200)
        assert torch.is_autocast_enabled("cpu") == (how == "around")
    assert found.status == "ok", found.reason
    assert found.comparison.agreement.name == "AGREES"
    assert found.eigenvalues.item() == pytest.approx(truth(model, batch), rel=1e-5)
    # and nothing is left of it
    assert autocast.__enter__ is entered
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))
    with torch.no_grad():
        rounded = model(batch[0].to(model[0].weight.dtype)).dtype
        assert rounded == (dtype if how == "weights" else torch.float32)


@pytest.mark.parametrize("wrap", ["checkpoint", "compile"])
def test_autocast_in_a_checkpoint_or_a_compiled_model(wrap):
    model, batch = classifier()

    def loss(m, b):
        with torch.autocast("cpu", torch.bfloat16):
            z = checkpoint(m, b[0], use_reentrant=False)
        return cross_entropy(z.float(), b[1])

    expected = truth(model, batch)
    if wrap == "compile":
        model = torch.compile(model, backend="eager")
    found = top_eigenvalues(loss if wrap == "checkpoint" else mixed(torch.bfloat16), model, [batch], tol=1e-4)
    assert found.eigenvalues.item() == pytest.approx(expected, rel=1e-4)


class Picky(nn.Module):
    """A kernel that takes nothing but bfloat16."""

    def forward(self, x):
        if x.dtype != torch.bfloat16:
            raise RuntimeError(f"expected BFloat16 but found {x.dtype}")
        return x * torch.sigmoid(x)


class Wrong(nn.Module):
    """Something else without autocast than with it."""

    def forward(self, x):
        return x if torch.is_autocast_enabled("cpu") else -3 * x


@pytest.mark.parametrize(("layer", "words"), [(Picky, "in float32 the loss fails"), (Wrong, "in float32 the loss is")])
def test_what_needs_half_precision_stays_there_and_states_its_rounding(layer, words):
    inside = 0
    for seed in range(6):
        model, batch = classifier(seed)
        reference = copy.deepcopy(model)
        model.insert(1, layer())
        if layer is Picky:
            reference.insert(1, nn.SiLU())
        choice = Choice()

        def work(pure, choice=choice, batch=batch):
            operator = choice.operator(objective_of(pure, [batch]))
            vector = operator.space.unit(operator.gradient())
            return operator.matvec(vector), vector, operator.uncertainty, operator.error

        source = FunctionSource(model, mixed(torch.bfloat16))
        product, vector, uncertainty, error = isolated(source, choice.arithmetic.around(work))
        assert words in choice.arithmetic.reason
        assert choice.arithmetic.suffix == ""
        assert 1e-3 < error < 0.2
        exact = isolated(
            FunctionSource(reference.double(), plain),
            lambda pure, b=batch, v=vector: (
                Choice().operator(objective_of(pure, [(b[0].double(), b[1])])).matvec(v.double())
            ),
        )
        inside += float((product - exact).norm()) <= uncertainty
        found = top_eigenvalues(mixed(torch.bfloat16), model, [batch], tol=1e-3)
        assert found.status in {"ok", "undetermined"}
        if found.status == "ok":
            assert abs(found.eigenvalues.item() - truth(reference, batch)) <= found.errors.item()
    assert inside >= 5


def test_differences_that_were_insisted_on_keep_to_trainings_kernels():
    model, batch = classifier()
    seen = set()

    def loss(m, b):
        with torch.autocast("cpu", torch.bfloat16):
            z = m(b[0])
        seen.add(z.dtype)
        return cross_entropy(z.float(), b[1])

    top_eigenvalues(loss, model, [batch], method="finite_differences", max_products=3)
    assert seen == {torch.bfloat16}


def test_training_in_float32_is_left_alone():
    model, batch = classifier()
    choice = Choice()
    around = choice.arithmetic.around(lambda pure: choice.operator(objective_of(pure, [batch])).error)
    assert isolated(FunctionSource(model, plain), around) == 0.0
    assert (choice.arithmetic.wide, choice.arithmetic.reason, choice.arithmetic.suffix) == (False, "", "")


def test_the_same_masks_of_dropout():
    """Otherwise the loss in float32 would be another one, and measured in bfloat16."""
    torch.manual_seed(0)
    model, batch = classifier(0, nn.Dropout(0.5))
    choice = Choice()
    work = choice.arithmetic.around(lambda pure: choice.operator(objective_of(pure, [batch])).resolution)
    assert isolated(FunctionSource(model, mixed(torch.bfloat16)), work) == torch.finfo(torch.float32).eps
    assert choice.arithmetic.suffix == "_in_float32"


def test_an_error_in_float32_leaves_training_as_it_was():
    model, batch = classifier()

    def loss(m, b):
        value = mixed(torch.bfloat16)(m, b)
        if not torch.is_autocast_enabled("cpu") and value.requires_grad:
            raise torch.OutOfMemoryError("no memory left")
        return value

    entered = autocast.__enter__
    with pytest.raises(torch.OutOfMemoryError):
        top_eigenvalues(loss, model, [batch])
    assert autocast.__enter__ is entered
    assert model(batch[0]).dtype == torch.float32
