"""Noise of parameter groups and of single tensors on request, and how many points all of it makes."""

import pytest
import torch
from torch import nn

from learnmech.probes import GradientNoiseScale, Recorder, WeightDynamics, every

B, STEPS = 8, 3


def loss(model, batch):
    return (model(batch[0]) - batch[1]).square().sum(1).mean()


def estimates(rows, sizes):
    """Estimates tr Sigma and |G|^2 by their definitions, from each piece's mean gradient in one row."""
    c = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
    mean = (c[:, None] * rows).sum(0)
    trace = (c * (rows - mean).square().sum(1)).sum() / ((len(sizes) - 1) / sum(sizes))
    products = (rows @ rows.T) * c[:, None] * c
    return float(trace), float((products.sum() - products.diagonal().sum()) / (1 - c.square().sum()))


def example_gradients(model, update, names):
    parameters = [p for name, p in model.named_parameters() if name in names]
    rows = []
    for x, y in update:
        for i in range(len(x)):
            found = torch.autograd.grad(loss(model, (x[i : i + 1], y[i : i + 1])), parameters)
            rows.append(torch.cat([g.flatten() for g in found]))
    return torch.stack(rows)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()


def train(spool, model, optimizer, probe, updates, between=lambda step: None):
    with Recorder(
        model, optimizer, loss, [probe], sink=spool.url, accumulation=len(updates[0]), strict=True
    ) as recorder:
        for step, update in enumerate(updates):
            between(step)
            optimizer.zero_grad()
            for batch in update:
                (loss(model, batch) / len(update)).backward()
                recorder.after_backward(batch)
            optimizer.step()
            recorder.after_step(update[-1])
    return spool()


def recorded(run, step):
    return [m for frame in run.frames if frame.step == step for m in frame.measurements]


def updates(pieces, steps=STEPS):
    generator = torch.Generator().manual_seed(1)
    draw = lambda width: torch.randn(B, width, generator=generator, dtype=torch.float64)
    return [[(draw(4), draw(2)) for _ in range(pieces)] for _ in range(steps)]


@pytest.mark.parametrize(
    ("source", "pieces", "each"), [("pieces", 3, B), ("examples", 1, 1), ("split", 1, B // 4), ("examples", 2, 1)]
)
def test_groups_and_tensors_agree_with_all_per_example_gradients(spool, network, source, pieces, each):
    weights, biases = [network[0].weight, network[2].weight], [network[0].bias, network[2].bias]
    optimizer = torch.optim.SGD([{"params": weights}, {"params": biases}], lr=0.0)
    probe = GradientNoiseScale(every(1), source=source, per_parameter=True, parameter_groups=True)
    data = updates(pieces)
    run = train(spool, network, optimizer, probe, data)
    scopes = {name: [name] for name, _ in network.named_parameters()}
    scopes |= {"group:0": ["0.weight", "2.weight"], "group:1": ["0.bias", "2.bias"], "0": ["0.weight", "0.bias"]}
    for scope, names in scopes.items():
        rows = example_gradients(network, data[-1], names)
        means = rows.view(len(rows) // each, each, -1).mean(1)
        trace, square = estimates(means, [each] * len(means))
        assert run.values("noise_trace", scope)[STEPS - 1] == pytest.approx(trace, rel=1e-9)
        assert run.values("grad_sq_norm", scope)[STEPS - 1] == pytest.approx(square, rel=1e-9)


def test_groups_that_change(spool, network):
    """The head is released at step 2, into a group of its own."""
    optimizer = torch.optim.SGD(network[0].parameters(), lr=0.0)

    def release(step):
        if step == 2:
            optimizer.add_param_group({"params": list(network[2].parameters())})

    probe = GradientNoiseScale(every(1), parameter_groups=True, per_layer=False)
    run = train(spool, network, optimizer, probe, updates(2, steps=5), release)
    for step, scopes in ((0, {"", "group:0"}), (1, {"", "group:0"}), (4, {"", "group:0", "group:1"})):
        assert {m.scope for m in recorded(run, step) if m.observable == "noise_trace"} == scopes


class Blocks(nn.Module):
    def __init__(self, count):
        super().__init__()
        self.embed, self.place = nn.Embedding(7, 8), nn.Parameter(torch.randn(4, 8))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True) for _ in range(count)
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.embed(x) + self.place
        for block in self.blocks:
            x = block(x)
        return self.head(x).mean(1)


@pytest.mark.parametrize(("blocks", "settings", "points"), [(2, {}, 46), (12, {}, 86), (12, {"limit": 2}, 22)])
def test_points_of_a_measurement(spool, blocks, settings, points):
    """What the docstring promises."""
    torch.manual_seed(0)
    model = Blocks(blocks)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    probe = GradientNoiseScale(every(1), **settings)
    with Recorder(model, optimizer, loss, [probe], sink=spool.url, accumulation=2, budget=0) as recorder:
        for _ in range(3):
            optimizer.zero_grad()
            for _ in range(2):
                x, y = torch.randint(7, (8, 4)), torch.randint(4, (8,))
                nn.functional.cross_entropy(model(x), y).backward()
                recorder.after_backward((x, y))
            optimizer.step()
            recorder.after_step((x, y))
    names = ("noise_trace", "grad_sq_norm", "noise_scale", "signal_to_noise", "doubling_speedup", "temperature")
    assert sum(m.observable in names for m in recorded(spool(), 2)) == points


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one(limit):
    with pytest.raises(ValueError, match="limit"):
        GradientNoiseScale(limit=limit)


@pytest.mark.parametrize(("source", "pieces", "share"), [("auto", 2, 0.2), ("pieces", 2, 0.2), ("split", 1, 1 / 3)])
def test_share_of_the_budget(spool, network, source, pieces, share):
    """Pieces of updates cost little, and leave the rest to others."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    probe, other = GradientNoiseScale(source=source), WeightDynamics()
    with Recorder(network, optimizer, loss, [probe, other], sink=spool.url, accumulation=pieces) as recorder:
        for update in updates(pieces, steps=10):
            optimizer.zero_grad()
            for batch in update:
                (loss(network, batch) / pieces).backward()
                recorder.after_backward(batch)
            optimizer.step()
            recorder.after_step(update[-1])
        governor = recorder._engine.runner.governor
        assert governor.accounts["gradient_noise_scale"].share == pytest.approx(share)
        rest = (1 - share) / (len(governor.governed) - 1)
        assert governor.accounts["weight_dynamics"].share == pytest.approx(min(0.5, rest))
