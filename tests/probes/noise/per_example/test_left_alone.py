"""A model that is looked at stays what its owner may save, copy and script, and what it computed may be let go of."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.nn.modules import module as modules
from torch.optim.swa_utils import AveragedModel

from learnmech.probes.isolation.flag import probing

R = torch.randn


class Bare(nn.Module):
    """Layers with a rule, and a parameter that only the graph shows."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(4, 6), nn.LayerNorm(6)
        self.last, self.scale = nn.Linear(6, 2), nn.Parameter(R(6))

    def forward(self, x):
        return self.last(torch.tanh(self.norm(self.first(x)) * self.scale))


def square(model, batch):
    return model(*batch).square().sum(1).mean()


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "saved": saved,
    "pickled": lambda model: pickle.loads(pickle.dumps(model)),
    "copied": copy.deepcopy,
    "averaged": AveragedModel,
    "scripted": torch.jit.script,
    "traced": lambda model: torch.jit.trace(model, R(5, 4)),
    "traced by fx": torch.fx.symbolic_trace,
    "exported": lambda model: torch.export.export(model, (R(5, 4),)).module(),
}


def hooks(model):
    """Hooks of modules and parameters."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    held = [getattr(module, kind) for module in model.modules() for kind in kinds if hasattr(module, kind)]
    return sum(map(len, held)) + sum(len(p._backward_hooks or ()) for p in model.parameters())


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("forward", [False, True])
@pytest.mark.parametrize("way", COPIES)
def test_copies_are_what_they_are_without(oracle, way, forward):
    model, x = Bare(), R(5, 4)
    with oracle.PerExample(model, oracle.named(model), 5) as examples:
        loss = square(model, (x,)) if forward else None
        other = COPIES[way](model)
        torch.testing.assert_close(other(x), model(x))
        if way in ("saved", "pickled", "copied", "averaged"):
            assert hooks(other) == 0  # the others share the parameters themselves
        if loss is not None:
            loss.backward()
            assert (examples.reason, examples.uncovered, examples.coverage) == ("", {}, 1.0)
    torch.testing.assert_close(other(x), model(x))
    if way in ("saved", "pickled", "copied", "averaged"):
        saved(other)
    assert hooks(model) == 0
    if way != "exported":  # which has hooks of its own
        assert hooks(other) == 0
    assert not (modules._global_forward_hooks)
    assert not (modules._global_forward_pre_hooks)


def test_modules_show_no_hook(oracle):
    model = Bare()
    with oracle.PerExample(model, oracle.named(model), 5):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class Witness(torch.autograd.Function):
    """A node with something on it that can be watched."""

    alive: list = []  # noqa: RUF012

    @staticmethod
    def forward(ctx, x):
        ctx.held = torch.zeros(1)
        Witness.alive.append(weakref.ref(ctx.held))
        return x.view_as(x)

    @staticmethod
    def backward(ctx, d):
        return d


def test_graphs_without_a_backward_pass_die(oracle):
    """At once, without the help of the garbage collector."""
    model = Bare()
    gc.collect()
    gc.disable()
    try:
        with oracle.PerExample(model, oracle.named(model), 5) as examples:
            Witness.alive.clear()
            for size in (5, 5, 5, 3):
                x = R(size, 4)
                Witness.alive.append(weakref.ref(x))
                y = model(Witness.apply(x.requires_grad_()))
                Witness.alive.append(weakref.ref(y))
                del x, y
            assert len(Witness.alive) == 12
            assert not any(one() is not None for one in Witness.alive)
            square(model, (R(5, 4),)).backward()
    finally:
        gc.enable()
    assert (examples.reason, examples.uncovered, examples.coverage) == ("", {}, 1.0)


def truth(oracle, model, x):
    return {name: rows.square().sum(1) for name, rows in oracle.contributions(model, square, (x,)).items()}


def agrees(oracle, examples, expected):
    assert (examples.reason, examples.uncovered) == ("", {})
    for name, found in examples.squares().items():
        torch.testing.assert_close(found, expected[name], rtol=1e-10, atol=1e-25)
    assert examples.judge(oracle.read(examples)) == {}


def test_forwards_for_other_ends_do_no_harm(oracle):
    """A validation with another batch size, a measurement of another probe with its gradients, and after the end."""
    model, x = Bare(), R(5, 4)
    expected = truth(oracle, model, x)
    with oracle.PerExample(model, oracle.named(model), 5) as examples:
        unused = model(R(3, 4))
        loss = square(model, (x,))
        with probing():
            torch.autograd.grad(square(model, (R(5, 4),)), list(model.parameters()))
        loss.backward()
        late = model(R(3, 4))
        with probing():
            square(model, (R(5, 4),))
    agrees(oracle, examples, expected)
    assert unused.shape == late.shape


@pytest.mark.parametrize("whole", [False, True])
def test_a_backward_pass_that_is_thrown_away(oracle, whole):
    """After an error, or for the other side of an adversarial game: gradients are cleared, and it begins anew."""
    model, x = Bare(), R(5, 4)
    expected = truth(oracle, model, x)

    def broken(d):
        raise OSError

    with oracle.PerExample(model, oracle.named(model), 5) as examples:
        inner = model.norm(model.first(R(5, 4)))
        if not whole:
            inner.register_hook(broken)
        loss = model.last(torch.tanh(inner * model.scale)).square().sum()
        if whole:
            loss.backward()
        else:
            with pytest.raises(OSError):
                loss.backward()
        model.zero_grad()
        square(model, (x,)).backward()
    agrees(oracle, examples, expected)


def test_gradients_that_are_kept_are_parts(oracle):
    model = Bare()
    with oracle.PerExample(model, oracle.named(model), 5) as examples:
        for _ in range(2):
            square(model, (R(5, 4),)).backward()
    assert set(examples.uncovered) == set(oracle.named(model))


def test_a_graph_from_before_gradients_were_cleared_is_named(oracle):
    model = Bare()
    with oracle.PerExample(model, oracle.named(model), 5) as examples:
        old = square(model, (R(5, 4),))
        square(model, (R(5, 4),)).backward()
        model.zero_grad()
        (old + square(model, (R(5, 4),))).backward()
    assert set(examples.uncovered) == set(oracle.named(model))


def test_a_gradient_changed_by_the_hook_of_another_is_always_verified(oracle):
    model, x = Bare(), R(5, 4)
    model.first.weight.register_hook(lambda g: 0.5 * g)
    examples = oracle.measure(model, square, (x,), 5, verify=False)
    assert set(examples.evidence()) == {"first.weight"}
    assert set(examples.judge(oracle.read(examples))) == {"first.weight"}


class Turned(nn.Module):
    """Positions first inside, where no gradient tells it."""

    def __init__(self, turn):
        super().__init__()
        self.embed, self.head, self.turn = nn.Embedding(9, 4), nn.Linear(4, 4), turn

    def forward(self, tokens):
        x = self.embed(tokens.t().contiguous() if self.turn else tokens)
        return self.head(torch.tanh(x).cumsum(0 if self.turn else 1))


@pytest.mark.parametrize("keyword", [False, True])
@pytest.mark.parametrize("turn", [False, True])
def test_as_many_positions_as_examples_in_an_index_that_is_turned(oracle, turn, keyword):
    model, tokens = Turned(turn), torch.randint(9, (5, 6))[:, :-1]
    call = (lambda m, t: m(tokens=t)) if keyword else (lambda m, t: m(t))
    loss = lambda m, b: call(m, b[0]).square().sum((1, 2) if not turn else (0, 2)).mean()
    examples = oracle.measure(model, loss, (tokens,), 5)
    if turn:
        assert all("as many positions as examples" in why for why in examples.uncovered.values())
        assert set(examples.uncovered) == set(oracle.named(model))
        return
    assert (examples.reason, examples.uncovered) == ("", {})
    for name, rows in oracle.contributions(model, loss, (tokens,)).items():
        torch.testing.assert_close(examples.squares()[name], rows.square().sum(1), rtol=1e-10, atol=1e-25)
