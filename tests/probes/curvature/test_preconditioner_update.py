"""The diagonal P of every optimizer against the step that PyTorch really made.

With momentum off the step is -lr g / P per weight, with the learning rate and the gradient that the test itself knows:
the oracle is PyTorch's own arithmetic, solved for P. With momentum on, the momentum is taken from the optimizer's
state, for NAdam weighed by coefficients computed here.
"""

import math

import pytest
import torch
from torch import nn

from learnmech.probes.curvature.preconditioners import preconditioner_of

RATE = 0.02


def cases():
    """Momentum off: name, optimizer class, options."""
    decays = [{}, {"weight_decay": 0.3}]
    adam = {"betas": (0.0, 0.9), "eps": 1e-3}
    for options in decays:
        for extra in ({}, {"amsgrad": True}, {"maximize": True}):
            yield torch.optim.Adam, adam | options | extra
            yield torch.optim.AdamW, adam | options | extra
        for extra in ({}, {"decoupled_weight_decay": True}):
            yield torch.optim.NAdam, adam | options | extra
            yield torch.optim.RAdam, adam | options | extra
        yield torch.optim.Adamax, adam | options
        for extra in ({}, {"centered": True}):
            yield torch.optim.RMSprop, {"alpha": 0.9, "eps": 1e-3} | options | extra
        yield torch.optim.Adagrad, {"lr_decay": 0.1, "initial_accumulator_value": 0.01, "eps": 1e-3} | options
        yield torch.optim.Adadelta, {"rho": 0.8, "eps": 1e-3} | options
        for extra in ({}, {"eps": (1e-3, 0.5)}, {"eps": (0.9, 0.5)}):  # from left to right, more of the eps are at work
            yield torch.optim.Adafactor, {"d": 1e6} | options | extra


def implementations(kind):
    """How PyTorch can carry out the step."""
    fused = [{"fused": True}] if kind in (torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad) else []
    return [{"foreach": False}, {"foreach": True}, *fused]


CASES = [(kind, options | how) for kind, options in cases() for how in implementations(kind)]


def trained(kind, options, steps, dtype=torch.float64, *, from_zero=False, surprise=1.0):
    """Make real steps; return the optimizer as it is before it takes the next one, and the last step's numbers.

    `from_zero` puts the weights at zero before the last step: then the step is not rounded to the weights' resolution.
    `surprise` is how much larger the last gradient is than the others.
    """
    torch.manual_seed(0)
    shapes = [(4, 3), (5,), (2, 3, 2), ()]
    parameters = [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]
    optimizer = kind(parameters, lr=RATE, **options)
    for step in range(1, steps + 1):
        for p in parameters:
            p.grad = torch.randn_like(p) * (surprise if step == steps else 1.0)
            if from_zero and step == steps:
                p.data.zero_()
        before = [p.detach().clone() for p in parameters]
        gradients = [p.grad.clone() for p in parameters]
        accumulated = [optimizer.state.get(p, {}).get("acc_delta", torch.zeros_like(p)).clone() for p in parameters]
        optimizer.step()
    after = [p.detach().clone() for p in parameters]
    for p, old, delta in zip(parameters, before, accumulated, strict=True):
        p.data.copy_(old)  # Adafactor's RMS(w) and Adadelta's average of steps are those of the next step
        if "acc_delta" in optimizer.state[p]:
            optimizer.state[p]["acc_delta"].copy_(delta)
    return parameters, optimizer, gradients, before, after


def learning_rate(kind, options, steps):
    """The scalar step size, by the papers' formulas."""
    if kind is torch.optim.Adagrad:
        return RATE / (1 + (steps - 1) * options["lr_decay"])
    return min(RATE, 1 / math.sqrt(steps)) if kind is torch.optim.Adafactor else RATE


def is_decoupled(kind, options):
    return kind in (torch.optim.AdamW, torch.optim.Adafactor) or options.get("decoupled_weight_decay", False)


def without_momentum(kind, options, steps, *args, **more):
    """Return P, and the P that PyTorch must have divided by: -lr g / (w_(t+1) - w_t), weight decay accounted for."""
    parameters, optimizer, gradients, before, after = trained(kind, options, steps, *args, **more)
    found = preconditioner_of(optimizer, parameters)
    decay = optimizer.param_groups[0]["weight_decay"]
    real = []
    for gradient, old, new in zip(gradients, before, after, strict=True):
        descent = -gradient if options.get("maximize") else gradient
        if is_decoupled(kind, options):
            start = old * (1 - RATE * decay)
        else:
            start, descent = old, descent + decay * old
        real.append(-learning_rate(kind, options, steps) * descent / (new - start))
    return found, real


@pytest.mark.parametrize("steps", [1, 12])
@pytest.mark.parametrize(("kind", "options"), CASES, ids=lambda value: str(getattr(value, "__name__", value)))
def test_the_step_is_the_gradient_over_the_diagonal(kind, options, steps):
    found, real = without_momentum(kind, options, steps)
    for diagonal, expected in zip(found, real, strict=True):
        assert diagonal.dtype == torch.float64
        torch.testing.assert_close(diagonal, expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize("kind", sorted({kind for kind, _ in CASES}, key=lambda kind: kind.__name__))
def test_in_float32(kind):
    options = next(options for other, options in CASES if other is kind)
    found, real = without_momentum(kind, options, 7, torch.float32, from_zero=True)
    for diagonal, expected in zip(found, real, strict=True):
        assert diagonal.dtype == torch.float32
        torch.testing.assert_close(diagonal, expected, rtol=3e-6, atol=0)  # a few roundings of 1.2e-7


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("steps", [1, 4, 12])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.RAdam, torch.optim.Adamax])
def test_with_momentum_the_step_is_the_first_moment_over_the_diagonal(kind, steps, foreach):
    """RAdam at beta2 = 0.9 rectifies from step 6 on: steps 1 and 4 are of the other kind."""
    options = {"betas": (0.8, 0.9), "eps": 1e-3, "foreach": foreach}
    parameters, optimizer, _, before, after = trained(kind, options, steps)
    for p, old, new, diagonal in zip(parameters, before, after, preconditioner_of(optimizer, parameters), strict=True):
        torch.testing.assert_close(diagonal, -RATE * optimizer.state[p]["exp_avg"] / (new - old), rtol=1e-8, atol=0)


def test_radam_before_rectification_divides_by_a_number():
    parameters, optimizer, *_ = trained(torch.optim.RAdam, {"betas": (0.8, 0.999)}, 5)
    for diagonal in preconditioner_of(optimizer, parameters):
        torch.testing.assert_close(diagonal, torch.full_like(diagonal, 1 - 0.8**5))
    parameters, optimizer, *_ = trained(torch.optim.RAdam, {"betas": (0.8, 0.999)}, 6)
    assert preconditioner_of(optimizer, parameters)[0].unique().numel() > 1


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("steps", [1, 12])
def test_nadam_weighs_gradient_and_momentum(steps, foreach):
    options = {"betas": (0.8, 0.9), "eps": 1e-3, "momentum_decay": 0.5, "foreach": foreach}
    parameters, optimizer, gradients, before, after = trained(torch.optim.NAdam, options, steps)
    mu = [0.8 * (1 - 0.5 * 0.96 ** (t * 0.5)) for t in range(1, steps + 2)]
    a, b = (1 - mu[-2]) / (1 - math.prod(mu[:-1])), mu[-1] / (1 - math.prod(mu))
    found = preconditioner_of(optimizer, parameters)
    for p, g, old, new, diagonal in zip(parameters, gradients, before, after, found, strict=True):
        real = -RATE * (a * g + b * optimizer.state[p]["exp_avg"]) / (new - old)
        torch.testing.assert_close(diagonal, real, rtol=1e-6, atol=0)  # PyTorch keeps the product of mu in float32


@pytest.mark.parametrize("centered", [False, True])
def test_rmsprop_divides_before_its_momentum(centered):
    options = {"momentum": 0.7, "eps": 1e-3, "centered": centered}
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(6, dtype=torch.float64))
    optimizer = torch.optim.RMSprop([p], lr=RATE, **options)
    buffer = torch.zeros_like(p)
    for _ in range(5):
        p.grad = torch.randn_like(p)
        optimizer.step()
        (diagonal,) = preconditioner_of(optimizer, [p])
        earlier, buffer = buffer, optimizer.state[p]["momentum_buffer"].clone()
        torch.testing.assert_close(diagonal, p.grad / (buffer - 0.7 * earlier), rtol=1e-8, atol=0)


def test_adafactors_clipping_shortens_the_step_of_a_whole_tensor():
    found, real = without_momentum(torch.optim.Adafactor, {"d": 1.0}, 12, surprise=100.0)
    for diagonal, expected in zip(found, real, strict=True):
        factor = expected / diagonal
        assert factor.min() > 1.5  # clipping is on: PyTorch divided by more
        torch.testing.assert_close(factor, factor.flatten()[0].expand_as(factor), rtol=1e-8, atol=0)


def test_step_counts_groups_and_tensor_rates_are_each_parameters_own():
    torch.manual_seed(0)
    early, late = (nn.Parameter(torch.zeros(3, dtype=torch.float64)) for _ in range(2))
    groups = [{"params": [early], "betas": (0.0, 0.5)}, {"params": [late], "eps": 0.5, "betas": (0.0, 0.99)}]
    optimizer = torch.optim.AdamW(groups, lr=torch.tensor(RATE, dtype=torch.float64), foreach=False, weight_decay=0.0)
    for step in range(6):
        early.grad = torch.randn_like(early)
        late.grad = torch.randn_like(late) if step >= 4 else None
        before = [early.detach().clone(), late.detach().clone()]
        optimizer.step()
    assert optimizer.state[late]["step"] == 2
    found = preconditioner_of(optimizer, [late, early])  # in the order asked for
    for p, old, diagonal in zip((late, early), reversed(before), found, strict=True):
        torch.testing.assert_close(diagonal, -RATE * p.grad / (p.detach() - old), rtol=1e-8, atol=0)


def test_tensor_betas():
    p = nn.Parameter(torch.ones(3, dtype=torch.float64))
    betas = (torch.tensor(0.0, dtype=torch.float64), torch.tensor(0.9, dtype=torch.float64))
    optimizer = torch.optim.Adam([p], lr=RATE, betas=betas, foreach=False)
    for _ in range(2):
        p.grad = torch.tensor([1.0, -2.0, 0.1], dtype=torch.float64)
        old = p.detach().clone()
        optimizer.step()
    (diagonal,) = preconditioner_of(optimizer, [p])
    torch.testing.assert_close(diagonal, -RATE * p.grad / (p.detach() - old), rtol=1e-8, atol=0)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax])
def test_the_arithmetic_of_capturable_implementations(kind):
    """They compute with step counts as float32 tensors; `differentiable` takes the same branches without a GPU."""
    torch.manual_seed(0)
    p = torch.randn(5, dtype=torch.float64)
    optimizer = kind([p], lr=RATE, betas=(0.0, 0.9), eps=1e-3, differentiable=True)
    for _ in range(8):
        p.grad = torch.randn_like(p)
        before = p.clone()
        optimizer.step()
    (diagonal,) = preconditioner_of(optimizer, [p])
    torch.testing.assert_close(diagonal, -RATE * p.grad / (p - before), rtol=1e-6, atol=0)
