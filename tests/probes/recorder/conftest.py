"""What tests of `Recorder` in plain loops share: losses, and a training whose sharpness has a closed form."""

import types

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from learnmech.probes import GradientNoiseScale, Recorder, Vitals, every


def _mean_square(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()


def _cross_entropy(model, batch):
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)


class Quartic(nn.Module):
    """L(w) = sum w^4 / 12, so that H = diag(w^2): the sharpness is the largest squared weight, another at each step."""

    def __init__(self, values=(1.0, -2.0, 1.5)):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(values, dtype=torch.float64))

    def forward(self, x):
        return self.w.pow(4).sum() / 12 + 0 * x.sum()


def _quartic_loss(model, batch):
    return model(batch)


def _descend(probes, sink, steps=5, lr=0.05, after_backward=True, scheduler=None, **settings):
    """Descend the quartic; return w_0 ... w_steps."""
    model = Quartic()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    schedule = None if scheduler is None else scheduler(optimizer)
    batch, weights = torch.zeros(4, 1), [model.w.detach().clone()]
    with Recorder(model, optimizer, _quartic_loss, probes, sink=sink, **settings) as recorder:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = _quartic_loss(model, batch)
            loss.backward()
            if after_backward:
                recorder.after_backward(batch)
            optimizer.step()
            if schedule is not None:
                schedule.step()
            recorder.after_step(batch, loss)
            weights.append(model.w.detach().clone())
    return weights


@pytest.fixture
def mean_square():
    """`mean_square(model, (x, y))`: the loss of a regression."""
    return _mean_square


@pytest.fixture
def cross_entropy():
    """`cross_entropy(model, (x, y))`: the loss of a classification."""
    return _cross_entropy


@pytest.fixture
def quartic():
    """`quartic.model()`, its `quartic.loss`, and `quartic.descend(probes, sink)`, which returns w_0 ... w_steps."""
    return types.SimpleNamespace(model=Quartic, loss=_quartic_loss, descend=_descend)


EXAMPLES = 2000


def _task(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    x = torch.randn(EXAMPLES, 6, dtype=dtype)
    y = x @ torch.randn(6, 1, dtype=dtype) + torch.randn(EXAMPLES, 1, dtype=dtype)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).to(dtype)
    return model, x, y


def _truth(model, x, y):
    """tr Sigma and |G|^2 from every example's gradient, in each scope."""
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def one(weights, x, y):
        return (functional_call(model, weights, (x[None],)) - y[None]).square().mean()

    each = vmap(grad(one), (None, 0, 0))(weights, x, y)
    flat = {name: g.reshape(len(x), -1).double() for name, g in each.items()}
    scopes = {"": list(flat), "0": [n for n in flat if n[0] == "0"], "2": [n for n in flat if n[0] == "2"]}
    rows = {scope: torch.cat([flat[n] for n in names], dim=1) for scope, names in scopes.items()}
    return {s: (float(r.var(dim=0).sum()), float(r.mean(dim=0).square().sum())) for s, r in rows.items()}


def _loss(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def _train(spool, model, x, y, *, steps, sizes=(16, 16, 16, 16), probes=None, told=True, clip=None, **more):
    """Train with accumulation; mean losses of the micro-batches are averaged as they are, unless `weights` says so."""
    weights = more.pop("weights", [1 / len(sizes)] * len(sizes))
    generator = torch.Generator().manual_seed(5)
    optimizer = torch.optim.SGD(model.parameters(), lr=more.pop("lr", 0.0))
    probes = probes or [GradientNoiseScale(every(1)), Vitals(every(1))]
    with Recorder(model, optimizer, _loss, probes, sink=spool.url, accumulation=len(sizes), **more) as recorder:
        for _ in range(steps):
            optimizer.zero_grad()
            for size, weight in zip(sizes, weights, strict=True):
                chosen = torch.randint(0, EXAMPLES, (size,), generator=generator)
                batch = (x[chosen], y[chosen])
                (_loss(model, batch) * weight).backward()
                if told:
                    recorder.after_backward(batch)
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            recorder.after_step(batch)
    return spool()


@pytest.fixture
def noisy():
    """A regression with noise: `task()`, `truth(...)` from every example's gradient, `loss`, `train(spool, ...)`."""
    return types.SimpleNamespace(task=_task, truth=_truth, loss=_loss, train=_train, examples=EXAMPLES)
