"""The diagonal P against the update that PyTorch really made: w_t - w_(t-1) = -lr m_t / P_t, solved for P_t."""

import copy

import pytest
import torch
from torch import nn

from learnmech.probes.curvature import (
    NoPreconditioner,
    adam_preconditioner,
    inverse_root,
    preconditioner_of,
    rmsprop_preconditioner,
)


def trained(make, steps=4):
    """A few real steps in float64; returns parameters, optimizer, the last update and the gradient before it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    optimizer = make(list(model.parameters()))
    x, y = torch.randn(20, 4, dtype=torch.float64), torch.randn(20, 2, dtype=torch.float64)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.step()
    parameters = list(model.parameters())
    return parameters, optimizer, before


ADAMS = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adam, early": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.95, 0.9), eps=1e-3),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.05, amsgrad=True, betas=(0.9, 0.5)),
    "coupled decay": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.3),
    "foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "for loop": lambda p: torch.optim.Adam(p, lr=0.01, foreach=False),
    "maximize": lambda p: torch.optim.Adam(p, lr=0.01, maximize=True),
    "tensor rate": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01, dtype=torch.float64), foreach=False),
    "groups": lambda p: torch.optim.AdamW(
        [{"params": p[:1], "betas": (0.5, 0.7), "eps": 1e-2}, {"params": p[1:], "lr": 0.02, "weight_decay": 0.0}],
        lr=0.01,
    ),
}


@pytest.mark.parametrize("name", sorted(ADAMS))
@pytest.mark.parametrize("steps", [1, 4])
def test_adam_is_what_the_step_divided_by(name, steps):
    parameters, optimizer, before = trained(ADAMS[name], steps)
    diagonal = adam_preconditioner(optimizer, parameters)
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    for p, old, found in zip(parameters, before, diagonal, strict=True):
        group = groups[p]
        rate, decay = float(group["lr"]), group["weight_decay"]
        decayed = old * (1 - rate * decay) if isinstance(optimizer, torch.optim.AdamW) else old
        real = -rate * optimizer.state[p]["exp_avg"] / (p.detach() - decayed)
        torch.testing.assert_close(found, real, rtol=1e-9, atol=0)


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("foreach", [False, True])
def test_rmsprop_is_what_the_step_divided_by(centered, foreach):
    def make(p):
        return torch.optim.RMSprop(p, lr=0.01, alpha=0.9, eps=1e-3, centered=centered, foreach=foreach)

    parameters, optimizer, before = trained(make)
    diagonal = rmsprop_preconditioner(optimizer, parameters)
    for p, old, found in zip(parameters, before, diagonal, strict=True):
        torch.testing.assert_close(found, -0.01 * p.grad / (p.detach() - old), rtol=1e-9, atol=0)


def test_not_yet_before_the_first_step():
    for name in ("Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta", "Adafactor"):
        parameters = [nn.Parameter(torch.ones(3))]
        optimizer = getattr(torch.optim, name)(parameters)
        entries = len(optimizer.state)  # Adagrad's are there from the start, at step 0
        found = preconditioner_of(optimizer, parameters)
        assert isinstance(found, NoPreconditioner)
        assert found.yet
        assert found.reason.startswith(f"not yet: {name} ")
        assert preconditioner_of(optimizer, [nn.Parameter(torch.ones(3))]).reason.startswith("none of the 1 parameters")
        assert len(optimizer.state) == entries  # asking must not create entries
        optimizer.state[parameters[0]] = {"step": torch.tensor(0.0), "exp_avg_sq": torch.zeros(3)}
        assert preconditioner_of(optimizer, parameters).yet


@pytest.mark.parametrize("name", ["SGD", "ASGD", "LBFGS", "Rprop", "SparseAdam", "Muon"])
def test_optimizers_without_a_diagonal_say_what_is_meaningful(name):
    if not hasattr(torch.optim, name):
        return  # Muon came with torch 2.9
    found = preconditioner_of(getattr(torch.optim, name)([nn.Parameter(torch.ones(3, 2))], lr=1.0), [])
    assert isinstance(found, NoPreconditioner)
    assert not found.yet
    assert found.reason.startswith(name + " ")
    assert "sharpness" in found.reason


def test_parameters_that_do_not_move_are_left_out():
    moving, unused, foreign = (nn.Parameter(torch.ones(2)) for _ in range(3))
    optimizer = torch.optim.Adam([moving, unused])
    moving.square().sum().backward()
    optimizer.step()
    diagonal = adam_preconditioner(optimizer, [foreign, moving, unused])
    assert diagonal[0].isinf().all()
    assert diagonal[1].isfinite().all()
    assert diagonal[2].isinf().all()
    assert inverse_root(diagonal)[0].tolist() == [0.0, 0.0]
    lost = adam_preconditioner(optimizer, [foreign])
    assert isinstance(lost, NoPreconditioner)
    assert not lost.yet


def test_half_precision_state_is_widened_and_nothing_is_written():
    p = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW([p])
    p.float().square().sum().backward()
    optimizer.step()
    kept = copy.deepcopy(optimizer.state_dict())
    (diagonal,) = adam_preconditioner(optimizer, [p])
    assert diagonal.dtype == torch.float32
    for key, value in optimizer.state_dict()["state"][0].items():
        assert torch.equal(value, kept["state"][0][key])


def test_epsilon_zero_with_a_dead_weight_is_said():
    p = nn.Parameter(torch.tensor([1.0, 0.0]))
    optimizer = torch.optim.RMSprop([p], eps=0.0)
    p.square().sum().backward()
    p.grad[1] = 0.0
    optimizer.step()
    found = rmsprop_preconditioner(optimizer, [p])
    assert isinstance(found, NoPreconditioner)
    assert "eps is 0" in found.reason
