"""Norms, updates, angles and shares in a plain loop are those of the weights before and after the same step."""

import math

import pytest
import torch
from torch import nn

from learnmech.observables.weights import WEIGHTS
from learnmech.probes import Recorder, WeightDynamics, every


class Net(nn.Module):
    """Two blocks of different types, a table without a module of its own, and biases."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.scale = nn.Parameter(torch.ones(4))
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), nn.Sequential(nn.Linear(4, 4))])

    def forward(self, x):
        for block in self.blocks:
            x = block(self.scale * x)
        return x


SCOPES = {
    "": lambda name: True,
    "type:Net": lambda name: name == "scale",
    "type:Linear": lambda name: name.split(".")[2:3] == ["0"],
    "type:LayerNorm": lambda name: name.startswith("blocks.0.1."),
    "scale": lambda name: name == "scale",
    "blocks.0": lambda name: name.startswith("blocks.0."),
    "blocks.1": lambda name: name.startswith("blocks.1."),
}
"""Which parameters of `Net` belong to a scope, written down by hand."""


@pytest.fixture
def trained(spool):
    """`trained(model, optimizer, ...)`: what was recorded, and the weights and gradients that the loop saw."""

    def train(model, optimizer, *, steps=3, clip=None, after_backward=True, **settings):
        torch.manual_seed(1)
        seen, slopes = [], []
        snapshot = lambda: {n: p.detach().double().clone() for n, p in model.named_parameters()}
        loss_fn = lambda model, x: (model(x) - x.roll(1, 1)).square().mean()
        probe = WeightDynamics(every(1), **settings)
        with Recorder(model, optimizer, loss_fn, [probe], sink=spool.url, budget=0, strict=True) as recorder:
            for _ in range(steps):
                x = torch.randn(8, 4)
                optimizer.zero_grad()
                loss = loss_fn(model, x)
                loss.backward()
                seen.append(snapshot())
                slopes.append({n: p.grad.double().clone() for n, p in model.named_parameters()})
                if after_backward:
                    recorder.after_backward(x)
                if clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                recorder.after_step(x, loss)
        return spool(), [*seen, snapshot()], slopes

    return train


def joined(tensors, belongs):
    return torch.cat([tensor.reshape(-1) for name, tensor in tensors.items() if belongs(name)])


def true_angle(w, v):
    u, v = w / w.norm(), v / v.norm()
    return 2 * math.atan2((u - v).norm().item(), (u + v).norm().item())


@pytest.mark.parametrize("clip", [None, 1e-3])
def test_every_scope_against_whole_vectors(trained, clip):
    """The oracle joins the tensors of a scope, in float64, and takes norms of the result."""
    model = Net()
    run, seen, slopes = trained(model, torch.optim.SGD(model.parameters(), lr=0.5), clip=clip)
    for scope, belongs in SCOPES.items():
        for step in range(3):
            w, after, g = (joined(t, belongs) for t in (seen[step], seen[step + 1], slopes[step]))
            truth = {
                "weight_norm": w.norm(),
                "weight_rms": w.square().mean().sqrt(),
                "grad_norm": g.norm(),
                "update_norm": (after - w).norm(),
                "relative_update": (after - w).norm() / w.norm(),
                "angular_update": true_angle(w, after),
            }
            if not scope:
                del truth["grad_norm"]  # `Vitals` records it
            for observable, value in truth.items():
                assert run.values(observable, scope)[step] == pytest.approx(float(value), rel=1e-5), (scope, observable)
    assert run.values("weight_norm_sq")[0] == pytest.approx(float(joined(seen[0], SCOPES[""]).square().sum()))
    recorded = {m.scope for frame in run.frames for m in frame.measurements if m.observable == "weight_norm"}
    assert recorded == set(SCOPES), "no scope more"


def test_parameters_and_groups_on_request(trained):
    model = Net()
    groups = [
        {"params": model.blocks.parameters(), "lr": 0.1, "weight_decay": 0.1},
        {"params": [model.scale], "lr": 0.2},
    ]
    run, seen, slopes = trained(model, torch.optim.SGD(groups), per_parameter=True, parameter_groups=True)
    for name, w in seen[0].items():
        g = slopes[0][name]
        assert run.values("weight_norm", name)[0] == pytest.approx(float(w.norm()))
        if w.norm() > 0:
            cosine = float((w * g).sum().abs() / w.norm() / g.norm())
            assert run.values("scale_invariance", name)[0] == pytest.approx(cosine, abs=1e-7)
    assert run.values("learning_rate", "group:0") == {0: 0.1}
    assert run.values("weight_decay", "group:0") == {0: 0.1}
    assert run.values("learning_rate", "group:1") == {0: 0.2}
    assert run.values("weight_norm", "group:1") == run.values("weight_norm", "scale")


@pytest.mark.parametrize("kind", ["AdamW", "SGD", "Adam"])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_share_of_weight_decay(trained, kind, decay):
    """Decoupled: beside the update it is part of; through the gradient: beside the sum of the two."""
    model = Net()
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.05, weight_decay=decay)
    run, seen, slopes = trained(model, optimizer)
    for scope, belongs in SCOPES.items():
        found = run.values("weight_decay_share", scope)
        assert bool(found) == bool(decay)
        for step in found:
            w, after, g = (joined(t, belongs) for t in (seen[step], seen[step + 1], slopes[step]))
            part = 0.05 * decay * w if kind == "AdamW" else decay * w
            whole = after - w if kind == "AdamW" else g + decay * w
            assert found[step] == pytest.approx(float(part.norm() / whole.norm()), rel=1e-5)


def test_a_loss_scale_is_taken_out(spool):
    """What GradScaler multiplies the loss by, as an accelerator keeps it: a tensor that is not read in the step."""
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.2)
    optimizer.grad_scale = torch.tensor(1024.0)  # where GradScaler leaves it for fused optimizers
    loss_fn = lambda model, x: model(x).square().mean()
    with Recorder(model, optimizer, loss_fn, [WeightDynamics(every(1))], sink=spool.url, budget=0) as recorder:
        x = torch.randn(8, 4)
        loss_fn(model, x).backward()
        weight, gradient = (t.detach().double().clone() for t in (model.weight, model.weight.grad))
        for parameter in model.parameters():
            parameter.grad *= 1024
        recorder.after_backward(x)
        del optimizer.grad_scale
        for parameter in model.parameters():
            parameter.grad /= 1024
        optimizer.step()
        recorder.after_step(x)
    run = spool()
    assert run.values("grad_norm", "weight")[0] == pytest.approx(float(gradient.norm()), rel=1e-6)
    share = float((0.2 * weight).norm() / (gradient + 0.2 * weight).norm())
    assert run.values("weight_decay_share", "weight")[0] == pytest.approx(share, rel=1e-6)


def test_a_gradient_first_seen_at_the_step_says_so(trained):
    """Without `after_backward` it may be clipped already."""
    model = Net()
    run, *_ = trained(model, torch.optim.SGD(model.parameters(), lr=0.1), after_backward=False)
    assert {m.method for _, m in run.all("grad_norm", "blocks.0")} == {"at_step"}


def test_scale_invariant_tensors_are_certified_and_summarized(cross_entropy, spool):
    """A linear layer before a layer norm without affine part: the loss does not change with the scale of its weight."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 8, bias=False), nn.LayerNorm(8, eps=0.0, elementwise_affine=False), nn.Linear(8, 3)
    )
    optimizer = torch.optim.AdamW(
        [
            {"params": model[0].parameters(), "weight_decay": 0.1},
            {"params": model[2].parameters(), "weight_decay": 0.2},
        ],
        lr=1e-2,
    )
    probe = WeightDynamics(every(1), per_parameter=True)
    norms = []
    with Recorder(model, optimizer, cross_entropy, [probe], sink=spool.url) as recorder:
        for _ in range(8):
            batch = (torch.randn(16, 6), torch.randint(0, 3, (16,)))
            optimizer.zero_grad()
            loss = cross_entropy(model, batch)
            loss.backward()
            norms.append(model[0].weight.detach().double().norm().item())
            recorder.after_backward(batch)
            optimizer.step()
            recorder.after_step(batch, loss)
    run = spool()
    assert list(run.values("angular_update", "scale_invariant")) == [4, 5, 6, 7], "five looks before the first"
    for step, value in run.values("angular_update", "scale_invariant").items():
        assert value == pytest.approx(run.values("angular_update", "0.weight")[step])
        assert run.values("effective_learning_rate", "scale_invariant")[step] == pytest.approx(1e-2 / norms[step])
        assert run.values("effective_learning_rate", "0.weight")[step] == pytest.approx(1e-2 / norms[step])
        assert run.values("weight_rms", "scale_invariant")[step] == pytest.approx(norms[step] / math.sqrt(48))
    assert not run.all("effective_learning_rate", "2.weight")
    assert max(run.values("scale_invariance", "0.weight").values()) < 1e-4
    assert min(run.values("scale_invariance", "2.weight").values()) > 1e-3
    # groups differ, so the decay of the group is said in its own scope, which laws look at first
    (_, decay), *_ = run.all("weight_decay")
    assert decay.value is None
    assert decay.status == "unsupported"
    assert run.values("weight_decay", "scale_invariant") == {4: 0.1}
    assert run.values("learning_rate") == {0: 0.01}


def mlp():
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))


class Transformer(nn.Module):
    """The same modules and names as the small transformer of the benchmarks, narrower."""

    def __init__(self, blocks):
        super().__init__()
        self.embed = nn.Embedding(2, 8)
        self.place = nn.Parameter(torch.randn(4, 8))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True) for _ in range(blocks)
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.embed((x > 0).long()) + self.place
        for block in self.blocks:
            x = block(x)
        return self.head(x).mean(1)


def _one_group_each(parameters, lr):
    return torch.optim.SGD([{"params": [p]} for p in parameters], lr=lr)


@pytest.mark.parametrize(
    ("make", "optimizer", "settings", "points"),
    [
        (mlp, torch.optim.SGD, {}, 35),
        (lambda: Transformer(2), torch.optim.AdamW, {}, 77),
        (lambda: Transformer(12), torch.optim.AdamW, {}, 147),
        (lambda: Transformer(12), torch.optim.AdamW, {"per_parameter": True}, 1327),
        (lambda: nn.Sequential(*(nn.Linear(4, 4) for _ in range(100))), torch.optim.SGD, {"limit": 10}, 7 * 12),
        (lambda: nn.Linear(4, 4), _one_group_each, {"limit": 1, "parameter_groups": True}, 7 * 4),
    ],
    ids=["MLP", "transformer", "12 blocks", "12 blocks and every tensor", "100 layers in 10 scopes", "1 of 2 groups"],
)
def test_points_per_measurement(trained, make, optimizer, settings, points):
    """The numbers that the docstring of the probe names."""
    model = make()
    run, *_ = trained(model, optimizer(model.parameters(), lr=0.01), steps=2, **settings)
    names = {observable.name for observable in WEIGHTS}
    ours = [m for frame in run.frames if frame.step == 1 for m in frame.measurements]
    assert points == sum(m.observable in names or (m.observable == "grad_norm" and bool(m.scope)) for m in ours)
