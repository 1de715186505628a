"""The isolated replay: the same loss as the training's, differentiable twice, calls that do not see one another."""

import collections
import threading
import types

import numpy as np
import pytest
import torch
from torch import nn

from learnmech.probes.isolation import FunctionSource, Refusal, is_probing, isolated
from learnmech.probes.isolation.journal import LARGE, Journal
from learnmech.probes.self_test import SelfTest, Verdict, gradient


def source(model, loss_fn=lambda model, batch: model(batch).square().mean(), optimizers=()):
    return FunctionSource(model, loss_fn, optimizers)


def test_the_replay_draws_what_the_training_would_draw_next():
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 1))
    x = torch.randn(6, 4)
    values = isolated(source(model), lambda loss: [float(loss(x, draw=draw).detach()) for draw in (0, 0, 1, 1, 0)])
    real = model(x).square().mean()
    assert values[0] == values[1] == values[4] == float(real.detach())
    assert values[2] == values[3] != values[0]


def test_gradients_of_first_and_second_order_agree_with_the_model_itself():
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    x = torch.randn(6, 4, dtype=torch.float64)

    def work(loss):
        leaves = list(loss.leaves.values())
        first = torch.autograd.grad(loss(x), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves, allow_unused=True)
        return [g.detach() for g in first], second

    first, second = isolated(source(model), work)
    parameters = list(model.parameters())
    expected = torch.autograd.grad(model(x).square().mean(), parameters, create_graph=True)
    twice = torch.autograd.grad(sum(g.square().sum() for g in expected), parameters, allow_unused=True)
    for found, wanted in zip(first, expected, strict=True):
        assert torch.equal(found, wanted)
    for found, wanted in zip(second, twice, strict=True):
        assert (found is None) == (wanted is None)
        assert found is None or torch.equal(found, wanted)


def test_attention_can_be_differentiated_twice():
    """Outside, the default kernel cannot: the test would fail without the choice of kernel."""

    def loss_fn(model, x):
        return nn.functional.scaled_dot_product_attention(model(x), model(x), model(x)).square().sum()

    model, x = nn.Linear(4, 4), torch.randn(1, 2, 3, 4)

    def second(loss):
        leaves = list(loss.leaves.values())
        first = torch.autograd.grad(loss(x), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    assert all(bool(g.isfinite().all()) for g in isolated(source(model, loss_fn), second))
    first = torch.autograd.grad(loss_fn(model, x), list(model.parameters()), create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        torch.autograd.grad(sum(g.square().sum() for g in first), list(model.parameters()))


def test_a_compiled_model_is_replayed_eagerly_and_not_recompiled():
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    compiled = torch.compile(model, backend="aot_eager")
    x = torch.randn(6, 4)
    compiled(x).square().mean().backward()
    frames = torch._dynamo.utils.counters["frames"]["total"]

    def second(loss):
        leaves = list(loss.leaves.values())
        first = torch.autograd.grad(loss(x), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    for _ in range(3):
        assert all(bool(g.isfinite().all()) for g in isolated(source(compiled), second))
        compiled(x).square().mean().backward()
    assert torch._dynamo.utils.counters["frames"]["total"] == frames


def test_buffers_start_afresh_in_every_evaluation():
    """A counter that drives the loss: without a fresh copy the second evaluation would see the first one's count."""

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))
            self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)
            self.register_buffer("count", torch.ones(1))

        def forward(self, x):
            self.count += 1
            self.frozen.mul_(2)
            return (self.w * self.count * self.frozen * x).sum()

    model = Counting()

    def work(loss):
        return [float(loss(torch.ones(1)).detach()) for _ in range(3)]

    assert isolated(source(model, lambda model, x: model(x)), work) == [4.0, 4.0, 4.0]
    assert float(model.count) == float(model.frozen) == 1.0


def test_frozen_weights_far_larger_than_the_trained_ones_are_not_copied(monkeypatch):
    """The base under an adapter: copying it would double the memory of the training."""
    monkeypatch.setattr("learnmech.probes.isolation.leaves.FROZEN_LIMIT", 1000)
    model = nn.Sequential(nn.Linear(100, 100).requires_grad_(False), nn.Linear(100, 1))
    seen = []

    def loss_fn(model, batch):
        seen.append(model[0].weight.data_ptr())
        return model(batch).square().mean()

    isolated(source(model, loss_fn), lambda loss: [loss(torch.randn(2, 100)).detach() for _ in range(2)])
    assert seen == [model[0].weight.data_ptr()] * 2


def test_losses_at_other_parameters():
    class Direct(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([2.0]))
            self.also = [self.w]

        def forward(self, x):
            return (self.w * self.also[0] * x).sum()

    def work(loss):
        moved = [torch.tensor([3.0], requires_grad=True)]
        there = loss.at(moved, lambda: loss(torch.ones(1)))
        (slope,) = torch.autograd.grad(there, moved)
        return float(there.detach()), float(slope), float(loss(torch.ones(1)).detach())

    model = Direct()
    assert isolated(source(model, lambda model, x: model(x)), work) == (9.0, 6.0, 4.0)
    assert model.also[0] is model.w


@pytest.mark.parametrize(
    ("loss_fn", "error", "message"),
    [
        (lambda model, x: model(x), Refusal, r"shape \(6, 1\)"),
        (lambda model, x: 1.0, Refusal, "returned float"),
        (lambda model, x: None, TypeError, "is a `return` missing"),
        (lambda model, x: x.sum(), Refusal, "does not depend differentiably"),
        (lambda model, x: model(x).sum().detach(), Refusal, "does not depend differentiably"),
    ],
)
def test_what_is_no_loss_is_refused(loss_fn, error, message):
    with pytest.raises(error, match=message):
        isolated(source(nn.Linear(4, 1), loss_fn), lambda loss: loss(torch.randn(6, 4)))


def test_a_model_without_trainable_parameters_is_refused():
    with pytest.raises(Refusal, match="no trainable parameter"):
        isolated(source(nn.Linear(4, 1).requires_grad_(False)), lambda loss: None)


def test_writing_to_the_training_from_outside_the_model_is_found_out():
    """A reference that hides from the journal (a closure's): the canary sees the write and says what was written."""
    model, hidden = nn.Linear(4, 1), nn.Linear(4, 1)
    optimizer = torch.optim.SGD([*model.parameters(), *hidden.parameters()], lr=0.1, momentum=0.9)
    model(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    buffer = optimizer.state[model.weight]["momentum_buffer"]
    x = torch.randn(6, 4)

    def meddling(model, batch):
        with torch.no_grad():
            buffer.add_(1.0)
        return model(batch).square().mean()

    with pytest.raises(Refusal, match="wrote to what belongs to the training: optimizer state momentum_buffer"):
        isolated(source(model, meddling, [optimizer]), lambda loss: loss(x).detach(), x)


def test_learning_rates_and_frozen_flags_come_back():
    model = nn.Linear(4, 1)
    rate = torch.tensor(0.1)
    optimizer = torch.optim.SGD(
        [{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": rate}], lr=0.1, foreach=False
    )

    def meddling(module, batch):
        optimizer.param_groups[0]["lr"] *= 2
        optimizer.param_groups[0]["new"] = 1
        optimizer.param_groups[1]["lr"].mul_(2)
        optimizer.param_groups[1]["params"][0].requires_grad_(False)  # the real one, as `toggle_optimizer` does it
        return module(batch).square().mean()

    isolated(source(model, meddling, [optimizer]), lambda loss: loss(torch.randn(6, 4)).detach())
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert "new" not in optimizer.param_groups[0]
    assert optimizer.param_groups[1]["lr"] is rate
    assert float(rate) == pytest.approx(0.1)
    assert model.bias.requires_grad


def test_user_code_can_tell_that_it_is_probed():
    seen = []

    def loss_fn(model, batch):
        seen.append(is_probing())
        return model(batch).sum()

    isolated(source(nn.Linear(4, 1), loss_fn), lambda loss: loss(torch.randn(6, 4)).detach())
    assert seen == [True]
    assert not is_probing()


def test_hooks_of_parameters_do_not_fire():
    model, fired = nn.Linear(4, 1), []
    model.weight.register_hook(lambda g: fired.append("tensor"))
    model.weight.register_post_accumulate_grad_hook(lambda p: fired.append("accumulate"))
    isolated(source(model), lambda loss: gradient(loss, torch.randn(6, 4)))
    assert fired == []
    assert model.weight.grad is None


# --- the journal ------------------------------------------------------------------------------------------------------


class State(nn.Module):
    """Keeps state in every way that Python offers."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.tensor = torch.zeros(2)
        self.pair = (torch.zeros(2), [1])
        self.ordered = collections.OrderedDict(a=1, b=2)
        self.counter = collections.Counter("aab")
        self.nested = {"a": [{"b": collections.deque([torch.zeros(1)], maxlen=2)}]}
        self.array = np.zeros(3)
        self.thing = types.SimpleNamespace(count=0, inner={"x": torch.zeros(2)})
        self.alias = self.nested["a"]
        self.secret = [nn.BatchNorm1d(2)]


def disturb(model):
    model.tensor.add_(1)
    model.tensor = None
    model.pair[0].add_(1)
    model.pair[1].append(2)
    model.ordered.move_to_end("a")
    model.ordered["c"] = 3
    model.counter.update("abc")
    model.nested["a"][0]["b"].append(torch.ones(1))
    model.nested["a"][0]["b"][0].add_(1)
    model.nested["new"] = 1
    model.array += 1
    model.thing.count += 1
    model.thing.inner["x"].add_(1)
    model.thing.inner.clear()
    model.alias.clear()
    model.secret[0](torch.randn(4, 2))
    model.secret[0].eval()
    del model.alias
    model.fresh = 1
    model.inner.register_forward_hook(lambda *a: None)
    model.register_buffer("late", torch.zeros(1))


def picture(model):
    return repr(
        [
            {k: v for k, v in module.__dict__.items() if k != "_forward_hooks"} | {"n": len(module._forward_hooks)}
            for module in (*model.modules(), *model.secret)
        ]
    )


def test_the_journal_puts_everything_back():
    model = State()
    before = picture(model)
    identities = {name: id(value) for name, value in model.__dict__.items()}
    versions = [model.tensor._version, model.secret[0].running_mean._version]
    journal = Journal(model)
    for _ in range(2):
        journal.rewind()
        disturb(model)
    journal.restore()
    assert picture(model) == before
    assert {name: id(value) for name, value in model.__dict__.items()} == identities, "the very same objects"
    assert model.alias is model.nested["a"]
    assert model.nested["a"][0]["b"].maxlen == 2
    assert list(model.ordered) == ["a", "b"]
    assert [model.tensor._version, model.secret[0].running_mean._version] == versions, "originals were never written to"


def test_every_rewind_starts_from_the_same_state():
    model = State()
    journal = Journal(model)
    pictures = []
    for _ in range(2):
        journal.rewind()
        pictures.append(picture(model))
        disturb(model)
    journal.restore()
    assert pictures[0] == pictures[1]


def test_large_tensors_are_watched_and_not_copied():
    model = nn.Linear(2, 1)
    model.data_set = torch.zeros(LARGE // 4 + 1)
    model.small = torch.zeros(1)
    journal = Journal(model)
    journal.rewind()
    whole, small = model.data_set, model.small
    journal.restore()
    assert whole is model.data_set
    assert small is not model.small
    assert [tensor is model.data_set for _, tensor in journal.aliased] == [True]


def test_objects_that_work_with_threads_are_left_alone():
    class Prefetcher:
        def __init__(self):
            self.lock = threading.Lock()
            self.ready = [1]

    model = nn.Linear(2, 1)
    model.prefetcher = Prefetcher()
    journal = Journal(model)
    model.prefetcher.ready.append(2)  # from another thread, meanwhile
    journal.restore()
    assert model.prefetcher.ready == [1, 2]


def test_cycles_end():
    model = nn.Linear(2, 1)
    model.loop = {"self": None}
    model.loop["self"] = model.loop
    model.parent = [model]
    journal = Journal(model)
    journal.rewind()
    model.loop["x"] = 1
    journal.restore()
    assert list(model.loop) == ["self"]


# --- the self-test ----------------------------------------------------------------------------------------------------


def armed(model, x):
    test = SelfTest()
    test.arm(source(model), x)
    return test


def test_the_true_gradient_passes():
    model, x = nn.Linear(4, 1), torch.randn(6, 4)
    test = armed(model, x)
    (model(x).square().mean() * 128 / 3).backward()
    assert test.check(dict(model.named_parameters()), factor=128 / 3) is Verdict.PASSED
    assert test.error < 1e-6


@pytest.mark.parametrize("change", [1.001, 0.0], ids=["a little", "missing"])
def test_another_gradient_fails(change):
    model, x = nn.Linear(4, 1), torch.randn(6, 4)
    test = armed(model, x)
    model(x).square().mean().backward()
    if change:
        model.weight.grad.mul_(change)
    else:
        model.weight.grad = None
    assert test.check(dict(model.named_parameters())) is Verdict.FAILED
    assert "loss=" in test.reason
    assert SelfTest(precise=False).tolerance > SelfTest().tolerance


def test_a_gradient_that_the_replay_lacks_fails():
    """Not zero-filled away: the replay has no gradient for a parameter that the training has one for."""
    model = nn.ModuleDict({"a": nn.Linear(4, 1), "b": nn.Linear(4, 1)})
    x = torch.randn(6, 4)
    test = SelfTest()
    test.arm(source(model, lambda model, x: model["a"](x).square().mean()), x)
    (model["a"](x).square().mean() + model["b"](x).square().mean()).backward()
    assert test.check(dict(model.named_parameters())) is Verdict.FAILED


def test_a_gradient_of_no_use_postpones_the_test():
    model, x = nn.Linear(4, 1), torch.randn(6, 4)
    test = SelfTest()
    for attempt in range(10):
        test.arm(source(model), x)
        model(x).square().mean().mul(float("inf")).backward()
        verdict = test.check(dict(model.named_parameters()))
        assert verdict is (Verdict.PENDING if attempt < 9 else Verdict.FAILED)
        model.zero_grad()
