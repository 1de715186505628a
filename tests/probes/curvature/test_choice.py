"""Which method is chosen, that it is remembered, and that nothing wrong is passed off as the Hessian."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from learnmech.probes.curvature import Choice, NonFinite, NotTwiceDifferentiable, Objective, Unmeasurable, objective_of
from learnmech.probes.curvature.operators.choice import RECHECK
from learnmech.probes.curvature.operators.graph import broken_node
from learnmech.probes.isolation import FunctionSource, isolated


class NoGradient(torch.autograd.Function):
    """a + b, with no gradient for b."""

    @staticmethod
    def forward(ctx, a, b):
        return a + b

    @staticmethod
    def backward(ctx, g):
        return g, None


def quartic(function=None, calls=None, dtype=torch.float64):
    """sum of x^2 (x^2 + 1) through a function, twice: the Hessian is diagonal, 12 x^2 + 2."""
    weights = torch.tensor([0.5, -1.0, 2.0], dtype=dtype, requires_grad=True)

    def loss(p):
        if calls is not None:
            calls.append(1)
        square = p[0] ** 2 if function is None else function.apply(p[0])
        return (square * (square + 1)).sum()

    return Objective([weights], [loss], names=["weights"])


TRUTH = torch.tensor([5.0, 14.0, 50.0], dtype=torch.float64)


def columns(operator):
    return torch.stack([operator.matvec(row) for row in torch.eye(3, dtype=operator.space.dtype)]).double()


def test_exact_where_possible_and_remembered():
    calls = []
    choice = Choice()
    operator = choice.operator(quartic(calls=calls))
    assert operator.method == "double_backward"
    assert choice.reason == ""
    assert len(calls) <= 2 + 1 + 1 + 2  # twice the loss, the gradient, one graph, two gradients to compare
    torch.testing.assert_close(columns(operator), torch.diag(TRUTH))
    calls.clear()
    again = choice.operator(quartic(calls=calls))
    assert calls == []  # nothing is tried again
    again.matvec(torch.ones(3, dtype=torch.float64))
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("function", "words"), [("once", "autograd node Error"), ("detached", "wrong second derivative")]
)
def test_differences_where_double_backward_fails(function, words, squares):
    calls, function = [], squares[function]
    choice = Choice()
    operator = choice.operator(quartic(function, calls))
    assert operator.method == "finite_differences"
    assert choice.reason.startswith("double backward: ")
    assert words in choice.reason
    torch.testing.assert_close(columns(operator), torch.diag(TRUTH), rtol=1e-6, atol=1e-6)
    assert operator.error < 1e-6
    calls.clear()
    assert choice.operator(quartic(function, calls)).method == "finite_differences"
    assert calls == []
    with pytest.raises(Unmeasurable, match=words):
        Choice("double_backward").operator(quartic(function))


def test_scaled(squares):
    scale = [torch.tensor([1.0, 2.0, 0.1], dtype=torch.float64)]
    for function, method in ((None, "double_backward"), (squares["once"], "finite_differences")):
        operator = Choice().operator(quartic(function), scale=scale)
        assert operator.method == method
        torch.testing.assert_close(columns(operator), torch.diag(scale[0] ** 2 * TRUTH), rtol=1e-6, atol=1e-6)


class Squares(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function.apply(x)


def kinked(function):
    """A ReLU network, whose differences are noise, with an operation that differentiates once in its middle."""
    torch.manual_seed(0)
    layers = [nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), Squares(function), nn.ReLU(), nn.Linear(128, 10)]
    return nn.Sequential(*layers), (torch.randn(128, 64), torch.randint(0, 10, (128,)))


def classes(m, b):
    return cross_entropy(m(b[0]), b[1])


def within(model, batch, work):
    return isolated(FunctionSource(model, classes), lambda pure: work(objective_of(pure, [batch])))


def test_neither_exact_nor_differences_gives_both_reasons(squares):
    def work(objective):
        choice = Choice()
        for _ in range(2):  # and again, as nothing was found
            with pytest.raises(Unmeasurable) as refusal:
                choice.operator(objective)
            assert "double backward: " in str(refusal.value)
            assert "finite differences: differences of gradients are off by" in str(refusal.value)
        # whoever insists on differences gets them, with their error
        insisted = Choice("finite_differences").operator(objective)
        insisted.matvec(objective.gradient_along())
        assert insisted.error > 0.05

    within(*kinked(squares["once"]), work)


def test_doubt_moves_on():
    choice = Choice()
    assert choice.operator(quartic()).method == "double_backward"
    assert choice.doubt("asymmetric by 30 %")
    operator = choice.operator(quartic())
    assert operator.method == "finite_differences"
    assert "asymmetric by 30 %" in choice.reason
    assert not choice.doubt("anything")
    assert not Choice("double_backward").doubt("anything")


def test_gauss_newton_is_never_a_stand_in(squares):
    def work(objective):
        with pytest.raises(Unmeasurable):
            Choice().operator(objective)
        return Choice("gauss_newton").operator(objective).method

    assert within(*kinked(squares["once"]), work) == "gauss_newton_by_differences"


def test_a_loss_that_is_not_finite_is_left_to_the_first_product(squares):
    weights = torch.ones(2, requires_grad=True)
    state = {"factor": torch.nan}
    choice = Choice()
    operator = choice.operator(Objective([weights], [lambda p: (p[0] ** 2).sum() * state["factor"]]))
    with pytest.raises(NonFinite):
        operator.matvec(torch.ones(2))
    state["factor"] = 1.0  # and nothing was learnt from it
    assert (
        choice.operator(Objective([weights], [lambda p: squares["once"].apply(p[0]).sum()])).method
        == "finite_differences"
    )


def test_a_parameter_whose_gradient_is_dropped_is_no_zero_row():
    a, b = (torch.ones(2, requires_grad=True) for _ in range(2))
    for method in ("auto", "double_backward", "finite_differences"):
        with pytest.raises(Unmeasurable, match="loss changes with second, but has no gradient there"):
            Choice(method).operator(
                Objective([a, b], [lambda p: NoGradient.apply(*p).square().sum()], names=["first", "second"])
            )
    # one that is really outside the loss is
    operator = Choice().operator(Objective([a, b], [lambda p: p[0].square().sum()], names=["first", "second"]))
    assert operator.unused == ("second",)
    assert operator.matvec(torch.ones(4)).tolist() == [2, 2, 0, 0]


def test_an_operation_with_a_backward_pass_of_its_own_is_no_zero_row():
    """Reentrant checkpointing by hand: the gradient lands in `.grad` of a leaf, and `autograd.grad` says None."""
    inner = torch.ones(2, requires_grad=True)
    outer = torch.full((2,), 2.0, requires_grad=True)

    class Reentrant(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * inner.detach()

        @staticmethod
        def backward(ctx, g):
            with torch.enable_grad():
                x = ctx.saved_tensors[0].detach().requires_grad_()
                (x * inner).backward(g)
            return x.grad

    for method in ("auto", "finite_differences"):
        with pytest.raises(Unmeasurable, match="backward pass of its own"):
            Choice(method).operator(Objective([outer, inner], [lambda p: Reentrant.apply(p[0]).square().sum()]))
    assert inner.grad is None
    assert outer.grad is None


def test_error_nodes_are_seen(squares):
    x = torch.ones(2, requires_grad=True)
    (gradient,) = torch.autograd.grad(squares["once"].apply(x).square().sum(), x, create_graph=True)
    assert broken_node([None, gradient]) == "Error"
    (gradient,) = torch.autograd.grad((x**3).sum(), x, create_graph=True)
    assert broken_node([gradient]) is None


def test_out_of_memory_passes_through():
    def loss(p):
        raise torch.OutOfMemoryError("no memory left")

    with pytest.raises(torch.OutOfMemoryError):
        Choice().operator(Objective([torch.ones(2, requires_grad=True)], [loss]))


def test_unknown_methods_are_an_error():
    with pytest.raises(ValueError, match="expected one of 'auto', 'double_backward'"):
        Choice("magic")
    assert issubclass(NotTwiceDifferentiable, Unmeasurable)


def test_a_method_that_goes_wrong_later_is_found(squares):
    """Kernels change behind the same parameters: the probe is repeated, along another direction."""
    state = {"function": squares["honest"]}

    class Late:
        @staticmethod
        def apply(x):
            return state["function"].apply(x)

    choice = Choice()
    for _ in range(5):
        assert choice.operator(quartic(Late)).method == "double_backward"
    state["function"] = squares["detached"]
    methods = [choice.operator(quartic(Late)).method for _ in range(RECHECK)]
    assert methods[-1] == "finite_differences"
    assert "wrong second derivative" in choice.reason
    torch.testing.assert_close(columns(choice.operator(quartic(Late))), torch.diag(TRUTH), rtol=1e-6, atol=1e-6)


def test_other_parameters_are_looked_at_at_once(squares):
    def partly(names):
        leaves = [torch.ones(2, requires_grad=True) for _ in names]
        return Objective(leaves, [lambda p: sum(f.apply(x).sum() for f, x in zip(order, p, strict=False))], names=names)

    order = [squares["honest"], squares["detached"]]
    choice = Choice()
    assert choice.operator(partly(["first"])).method == "double_backward"
    assert choice.operator(partly(["first", "second"])).method == "finite_differences"


def test_a_recheck_costs_one_product_and_counts_it():
    calls = []
    choice = Choice()
    spent = []
    for _ in range(2 * RECHECK + 1):
        calls.clear()
        operator = choice.operator(quartic(calls=calls))
        spent.append((operator.products, len(calls)))
    assert spent[0] == (1, 6)
    assert spent.count((0, 0)) == 2 * RECHECK - 2
    assert [i for i, (products, _) in enumerate(spent) if products] == [0, RECHECK, 2 * RECHECK]
