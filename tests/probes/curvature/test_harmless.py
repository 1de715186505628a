"""A measurement changes nothing: weights, buffers, gradients, flags, hooks, random streams; also when it fails."""

import gc
import random
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.checkpoint import checkpoint

from learnmech.observables import Status
from learnmech.probes.curvature import Agreement, top_eigenvalues


class Mixed(nn.Module):
    """Dropout, batch norm, attention, a counter in a buffer, randomness from three libraries."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(8, 2)).eval()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        x = x + 0.01 * float(np.random.rand()) + 0.01 * random.random()
        return self.head(self.block(self.norm(self.embed(x))[:, None])[:, 0])


def loss_of(model, batch):
    return mse_loss(model(batch[0]), batch[1])


def snapshot(model, optimizer):
    def copied(tensors):
        return {name: (id(t), t._version, t.detach().clone()) for name, t in tensors}

    grads = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
    return {
        "parameters": copied(model.named_parameters()),
        "buffers": copied(model.named_buffers()),
        "gradients": copied(grads),
        "state": copied((k, v) for s in optimizer.state.values() for k, v in s.items()),
        "flags": [m.training for m in model.modules()],
        "requires": [p.requires_grad for p in model.parameters()],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist() + list(np.random.get_state()[2:]),
        "python": random.getstate(),
        "grad mode": torch.is_grad_enabled(),
    }


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.fixture
def training():
    torch.manual_seed(0)
    model = Mixed()
    optimizer = torch.optim.AdamW(model.parameters())
    batch = (torch.randn(9, 6), torch.randn(9, 2))
    for _ in range(2):
        loss_of(model, batch).backward()  # gradients left over, as in mid-step
    optimizer.step()
    return model, optimizer, batch


def test_nothing_is_changed(training):
    model, optimizer, batch = training
    fired = []
    next(model.parameters()).register_hook(fired.append)
    before = snapshot(model, optimizer)
    with torch.no_grad():
        result = top_eigenvalues(loss_of, model, [batch], 2, tol=1e-2, max_products=40, preconditioner=optimizer)
    assert result.products > 2
    assert same(snapshot(model, optimizer), before)
    assert not fired
    assert not result.vectors.requires_grad
    assert batch[0].grad is None


def test_nothing_is_changed_by_a_loss_that_fails_half_way(training):
    model, optimizer, batch = training
    before = snapshot(model, optimizer)
    count = 0

    def fails(m, b):
        nonlocal count
        count += 1
        m.eval()
        torch.rand(3)
        if count == 2:  # in the finite-difference check, weights moved
            raise KeyError("from the user's loss")
        return loss_of(m, b)

    with pytest.raises(KeyError, match="from the user's loss"):
        top_eigenvalues(fails, model, [batch], tol=1e-2)
    assert same(snapshot(model, optimizer), before)


def test_graphs_are_freed_at_once(training):
    model, _, batch = training
    seen = []

    def loss(m, b):
        output = m(b[0])
        seen.append(weakref.ref(output))  # held by the graph of the loss, and by nothing else
        return mse_loss(output, b[1])

    gc.collect()
    gc.disable()
    try:
        result = top_eigenvalues(loss, model, [batch], tol=1e-2)
        broken = top_eigenvalues(lambda m, b: loss(m, b) * torch.nan, model, [batch])
    finally:
        gc.enable()
    assert result.products > 1
    assert broken.status is Status.NON_FINITE
    assert len(seen) >= 4
    assert not any(ref() for ref in seen)


def test_works_under_inference_mode(architecture):
    problem = architecture("transformer")
    outside = top_eigenvalues(problem.loss, problem.model, [problem.batch])
    with torch.inference_mode():
        inside = top_eigenvalues(problem.loss, problem.model, [problem.batch])
    assert inside.eigenvalues.item() == outside.eigenvalues.item()


def test_buffers_that_drive_the_loss_are_the_same_in_every_evaluation():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(3))
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return self.calls * (x * self.w).square().sum()

    model = Counting()
    batches = [torch.ones(2, 3), torch.ones(4, 3)]
    kept = top_eigenvalues(lambda m, x: m(x) / len(x), model, batches)
    anew = top_eigenvalues(lambda m, x: m(x) / len(x), model, batches, retain=False)
    assert kept.eigenvalues.item() == pytest.approx(2.0, rel=1e-6)
    assert anew.eigenvalues.item() == pytest.approx(2.0, rel=1e-6)
    assert kept.comparison.agreement is Agreement.AGREES
    assert model.calls.item() == 0


@pytest.mark.parametrize("retain", [True, False])
def test_activation_checkpointing(retain):
    """The forward pass runs again during the backward pass: it must meet neither real buffers nor other weights."""

    class Checkpointed(nn.Module):
        def __init__(self, on):
            super().__init__()
            self.on = on
            self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2))
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            return self.head(checkpoint(self.body, x, use_reentrant=False) if self.on else self.body(x))

    results, buffers = [], []
    batch = (torch.randn(12, 6), torch.randn(12, 2))
    for on in (False, True):
        torch.manual_seed(5)
        model = Checkpointed(on)
        torch.manual_seed(6)
        results.append(top_eigenvalues(loss_of, model, [batch], retain=retain))
        buffers.append([b.clone() for b in model.buffers()])
    assert results[1].status is Status.OK
    assert results[1].comparison.agreement is Agreement.AGREES
    assert results[1].eigenvalues.item() == pytest.approx(results[0].eigenvalues.item(), rel=1e-5)
    assert same(buffers[0], [torch.zeros(8), torch.ones(8), torch.tensor(0)])
    assert same(buffers[1], buffers[0])


def test_compiled_model(architecture):
    problem = architecture("mlp")
    plain = top_eigenvalues(problem.loss, problem.model, [problem.batch])
    compiled = torch.compile(problem.model, backend="aot_eager")
    problem.loss(compiled, problem.batch).backward()
    frames = torch._dynamo.utils.counters["frames"]["total"]
    result = top_eigenvalues(problem.loss, compiled, [problem.batch])
    assert result.status is Status.OK, result.reason
    assert result.eigenvalues.item() == pytest.approx(plain.eigenvalues.item(), rel=1e-5)
    assert torch._dynamo.utils.counters["frames"]["total"] == frames  # nothing was compiled for the measurement
    torch._dynamo.reset()
