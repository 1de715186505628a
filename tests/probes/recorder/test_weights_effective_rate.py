"""The effective learning rate of scale-invariant weights, against numbers worked out by hand from the weights.

SGD turns weights w by eta |g| / |w| with |g| ~ 1 / |w|: its rate is eta / |w|^2. Adam's update does not shrink with the
gradient: eta / |w|. Of several tensors it is the geometric mean.
"""

import math

import pytest
import torch
from torch import nn

from learnmech.probes import Recorder, WeightDynamics, every

STEPS = 8
CERTIFIED = 4
"""The step from which on five looks have certified them."""


def model(layers):
    """Linear layers without bias, each before a normalization; lengths of the weights are chosen."""
    torch.manual_seed(0)
    norm = lambda: nn.LayerNorm(6, eps=1e-12, elementwise_affine=False)
    parts = [part for _ in range(layers) for part in (nn.Linear(6, 6, bias=False), norm(), nn.ReLU())]
    found = nn.Sequential(*parts, nn.Linear(6, 3))
    with torch.no_grad():
        for length, k in enumerate(range(layers), start=2):
            found[3 * k].weight.mul_(length / found[3 * k].weight.norm())
    return found


def train(spool, found, optimizer, **settings):
    """Train; return what was recorded, and |w| of each layer before each update."""
    layers, lengths = [m for m in list(found)[:-1] if isinstance(m, nn.Linear)], []
    with Recorder(
        found,
        optimizer,
        lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
        [WeightDynamics(every(1), **settings)],
        sink=spool.url,
        budget=0,
        strict=True,
    ) as recorder:
        for _ in range(STEPS):
            batch = torch.randn(16, 6), torch.randint(3, (16,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(found(batch[0]), batch[1]).backward()
            recorder.after_backward(batch)
            lengths.append([float(layer.weight.detach().double().norm()) for layer in layers])
            optimizer.step()
            recorder.after_step(batch)
    return spool(), lengths


@pytest.mark.parametrize(("kind", "exponent"), [
    (lambda p: torch.optim.SGD(p, lr=0.2), 2),
    (lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9, weight_decay=0.01), 2),
    (lambda p: torch.optim.AdamW(p, lr=0.2), 1),
])  # fmt: skip
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_it_is_eta_over_the_length_to_a_power(kind, exponent, layers, spool):
    found = model(layers)
    run, lengths = train(spool, found, kind(found.parameters()), per_parameter=True)
    recorded = run.all("effective_learning_rate", "scale_invariant")
    assert [step for step, _ in recorded] == list(range(CERTIFIED, STEPS))
    for step, m in recorded:
        one_by_one = [0.2 / length**exponent for length in lengths[step]]
        assert m.value == pytest.approx(math.prod(one_by_one) ** (1 / layers), rel=1e-5)
        assert m.method == ("" if layers == 1 else f"geometric_mean_of_{layers}")
        for k, expected in enumerate(one_by_one):
            assert run.values("effective_learning_rate", f"{3 * k}.weight")[step] == pytest.approx(expected, rel=1e-5)


def test_by_hand(spool):
    """Weights of lengths 2 and 3 that all but stay: eta / 4, eta / 9, together eta / 6."""
    found, eta = model(2), 1e-9
    run, _ = train(spool, found, torch.optim.SGD(found.parameters(), lr=eta), per_parameter=True)
    for scope, divisor in {"scale_invariant": 6, "0.weight": 4, "3.weight": 9}.items():
        assert run.values("effective_learning_rate", scope)[STEPS - 1] == pytest.approx(eta / divisor, rel=1e-5)


def test_each_tensor_has_its_own_learning_rate(spool):
    found = model(2)
    groups = [
        {"params": [found[0].weight], "lr": 0.4},
        {"params": list(found.parameters())[1:], "lr": 0.1},
    ]
    run, lengths = train(spool, found, torch.optim.SGD(groups, lr=0.1))
    for step, value in run.values("effective_learning_rate", "scale_invariant").items():
        a, b = lengths[step]
        assert value == pytest.approx(0.2 / (a * b), rel=1e-5), "sqrt(0.4 / a^2 * 0.1 / b^2)"
