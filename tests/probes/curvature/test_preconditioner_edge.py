"""What the diagonal is for: PyTorch's own optimizers on a quadratic become unstable where P^(-1) H says.

The oracle is the run: 2 % below the threshold a deviation dies out, 2 % above it grows. P is frozen by optimizers that
forget almost nothing (averages over 1e9 steps, after 1e12 steps), so that linear stability applies as it stands.
"""

import pytest
import torch
from torch import nn

from learnmech.probes.curvature.preconditioners import inverse_root, preconditioner_of

LONG = 1 - 1e-9
AGE = 1e12
RATE = 0.01
BETA = 0.9
SLOW = 1e-7
"""Adafactor's step size is at most 1 / sqrt(t), 1e-6 at this age."""

MOMENTS = {"exp_avg_sq", "square_avg", "sum", "exp_inf", "variance", "row_var", "col_var", "acc_delta"}


def nesterov(a, b):
    """The threshold of w' = w - x (a w + b m'), m' = beta m + (1 - beta) w, from Jury's criterion."""
    return 2 * (1 + BETA) / (a * (1 + BETA) + b * (1 - BETA))


AVERAGED = (2 + 2 * BETA) / (1 - BETA)
EDGES = {
    "Adam": (torch.optim.Adam, {"betas": (BETA, LONG)}, AVERAGED / RATE),
    "Adam, amsgrad": (torch.optim.Adam, {"betas": (BETA, LONG), "amsgrad": True}, AVERAGED / RATE),
    "Adam, beta1 = 0": (torch.optim.Adam, {"betas": (0.0, LONG)}, 2 / RATE),
    "AdamW": (torch.optim.AdamW, {"betas": (BETA, LONG), "weight_decay": 0.0}, AVERAGED / RATE),
    "AdamW, decay": (
        torch.optim.AdamW,
        {"betas": (BETA, LONG), "weight_decay": 20.0},
        (1 + BETA) * (2 - RATE * 20.0) / ((1 - BETA) * RATE),
    ),
    "NAdam": (torch.optim.NAdam, {"betas": (BETA, LONG)}, nesterov(1 - BETA, BETA) / RATE),
    "NAdam, young": (  # momentum_decay 0 keeps mu at beta1 / 2, where it starts
        torch.optim.NAdam,
        {"betas": (BETA, LONG), "momentum_decay": 0.0},
        nesterov(1 - BETA / 2, BETA / 2) / RATE,
    ),
    "RAdam": (torch.optim.RAdam, {"betas": (BETA, LONG)}, AVERAGED / RATE),
    "Adamax": (torch.optim.Adamax, {"betas": (BETA, LONG)}, AVERAGED / RATE),
    "RMSprop": (torch.optim.RMSprop, {"alpha": LONG}, 2 / RATE),
    "RMSprop, centered": (torch.optim.RMSprop, {"alpha": LONG, "centered": True}, 2 / RATE),
    "RMSprop, momentum": (torch.optim.RMSprop, {"alpha": LONG, "momentum": BETA}, 2 * (1 + BETA) / RATE),
    "Adagrad": (torch.optim.Adagrad, {}, 2 / RATE),
    "Adadelta": (torch.optim.Adadelta, {"rho": LONG, "lr": RATE}, 2 / RATE),
    "Adafactor": (torch.optim.Adafactor, {"lr": SLOW, "weight_decay": 0.0}, 2 / SLOW),
}


def growth(kind, options, edge, factor):
    """Return by what factor a deviation from the minimum has grown (or shrunk) when that is clear."""
    torch.manual_seed(0)
    centre = torch.zeros(2, 2) if options.get("weight_decay") else torch.ones(2, 2)
    parameter = nn.Parameter(centre.double())
    optimizer = kind([parameter], **{"lr": RATE} | options)
    parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = optimizer.state[parameter]
    for name, value in state.items():
        if name in MOMENTS:
            value.uniform_(0.5, 2.0)
        elif name == "max_exp_avg_sq":
            value.uniform_(2.0, 4.0)  # stays the maximum
        elif name == "step":
            value.fill_(AGE)
        elif name == "mu_product":
            value.zero_()
    parameter.data.copy_(centre)
    (scale,) = inverse_root(preconditioner_of(optimizer, [parameter]))
    random = torch.randn(4, 4, dtype=torch.float64)
    hessian = random @ random.T
    scaled = scale.flatten()[:, None] * hessian * scale.flatten()
    hessian *= factor * edge / torch.linalg.eigvalsh(scaled)[-1]
    # Small enough to be far from Adafactor's clipping when it has grown, large enough not to drown beside weights of 1.
    start = 1e-10 * torch.randn(4, dtype=torch.float64)
    parameter.data.add_(start.reshape(2, 2))
    for _ in range(4000):
        deviation = (parameter.detach() - centre).flatten()
        if not 1e-3 < deviation.norm() / start.norm() < 1e2:
            break
        parameter.grad.copy_((hessian @ deviation).reshape(2, 2))
        optimizer.step()
    return float(deviation.norm() / start.norm())


@pytest.mark.parametrize("name", sorted(EDGES))
def test_the_threshold_of_the_preconditioned_sharpness(name):
    kind, options, edge = EDGES[name]
    assert growth(kind, options, edge, 0.98) < 1
    assert growth(kind, options, edge, 1.02) >= 1e2
