"""Training goes on as if nobody looked: same numbers, nothing raised, nothing kept, nothing computed again."""

import gc
import types

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from learnmech.probes.noise.per_example import check, collector, forms, layer_calls, layers, parameter_uses

R = torch.randn


class Block(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.norm, self.scale = nn.LayerNorm(8), nn.Parameter(R(8))
        self.attention = nn.MultiheadAttention(8, 2, dropout=dropout, batch_first=True)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.dropout = nn.Dropout(dropout)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.scale * self.dropout(self.down(torch.relu(self.up(x))))


class Model(nn.Module):
    """Two blocks, in checkpoints if asked for."""

    def __init__(self, dropout=0.0, reentrant=None, shared=False):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        first = Block(dropout)
        self.blocks = nn.ModuleList([first, first if shared else Block(dropout)])
        self.head = nn.Linear(8, 11)
        self.reentrant = reentrant

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(x)


def entropy(model, batch):
    return functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


def batch():
    tokens = torch.randint(11, (4, 7))
    return tokens[:, :-1], tokens[:, 1:]


def train(oracle, measured, reentrant=None):
    """20 steps; returns all that training leaves behind."""
    torch.manual_seed(3)
    model = Model(dropout=0.1, reentrant=reentrant).float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        data = batch()
        if measured:
            with oracle.PerExample(model, oracle.named(model), 4) as examples:
                loss = entropy(model, data)
                loss.backward()
            examples.squares()
        else:
            loss = entropy(model, data)
            loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return [*losses, *(p.detach() for p in model.parameters()), *(p.grad for p in model.parameters()), torch.rand(3)]


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_twenty_steps_are_the_same(oracle, reentrant):
    with_hooks, without = train(oracle, True, reentrant), train(oracle, False, reentrant)
    assert all(torch.equal(a, b) for a, b in zip(with_hooks, without, strict=True))


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (layer_calls, "leading"),
        (parameter_uses, "derive"),
        (layer_calls, "saving"),
        (layer_calls.LayerCalls, "note"),
        (collector, "recomputing"),
        (forms.Outer, "squares"),
        (forms.Rows, "squares"),
        (layers, "wide"),
        (parameter_uses.Uses, "walk"),
    ],
)
def test_an_error_in_a_hook_voids_the_measurement_only(oracle, monkeypatch, place, name):
    def broken(*args, **kwargs):
        raise torch.OutOfMemoryError("no memory")

    without = train(oracle, False)
    monkeypatch.setattr(place, name, broken)
    assert all(torch.equal(a, b) for a, b in zip(train(oracle, True), without, strict=True))
    model = Model()
    examples = oracle.measure(model, entropy, batch(), 4)
    assert "no memory" in examples.reason
    assert (examples.squares(), examples.evidence(), examples.in_scopes({"": ["embed.weight"]})) == ({}, {}, {})


def hooks(model):
    return sum(
        len(held)
        for module in model.modules()
        for held in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    ) + sum(len(p._backward_hooks or ()) for p in model.parameters())


def test_all_hooks_are_taken_away(oracle):
    model = Model()
    assert not oracle.measure(model, entropy, batch(), 4).reason
    assert hooks(model) == 0
    examples = oracle.PerExample(model, oracle.named(model), 4)
    with pytest.raises(ZeroDivisionError), examples:
        entropy(model, batch()).backward(1 / 0)
    assert hooks(model) == 0


def held(thing):
    """All tensors that an object holds, by whatever way, except those of modules."""
    found, stack, seen = [], [thing], set()
    while stack:
        one = stack.pop()
        if id(one) in seen or isinstance(one, nn.Module | nn.Parameter | type | types.ModuleType):
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor):
            found.append(one)
        elif isinstance(one, types.FunctionType):
            stack += [cell.cell_contents for cell in one.__closure__ or ()]
        else:
            stack += gc.get_referents(one)
    return found


def waiting(examples):
    """And all that the hooks in graphs hold: the examples know these by weak references only."""
    return held([examples, *examples._collector._all.open])


@pytest.mark.parametrize("backward", [True, False])
def test_nothing_is_kept(oracle, backward):
    """Nothing but results: B numbers for each parameter, and two of evidence."""
    model = Model()
    with oracle.PerExample(model, oracle.named(model), 4) as examples:
        loss = entropy(model, batch())
        assert max(tensor.numel() for tensor in waiting(examples)) >= 4 * 6 * 8
        if backward:
            loss.backward()
            assert max(tensor.numel() for tensor in waiting(examples)) < 4 * 6 * 8
    assert not waiting(examples) or backward
    assert {tuple(tensor.shape) for tensor in held(examples)} == ({(4,), (2,)} if backward else set())


def test_nothing_is_kept_that_a_checkpoint_lets_go_of(oracle):
    model, tokens = Model(reentrant=False), batch()[0]
    with oracle.PerExample(model, oracle.named(model), 4) as examples:
        logits = model(tokens)
        assert not any(tensor.shape == (4, 6, 16) for tensor in waiting(examples))
        model.reentrant = None
        logits = model(tokens)
        assert any(tensor.shape == (4, 6, 16) for tensor in waiting(examples))
        del logits


def test_a_graph_that_is_used_again_after_the_measurement(oracle):
    model = Model()
    with oracle.PerExample(model, oracle.named(model), 4) as examples:
        loss = entropy(model, batch())
        loss.backward(retain_graph=True)
    before = {name: square.clone() for name, square in examples.squares().items()}
    loss.backward()
    assert all(torch.equal(square, before[name]) for name, square in examples.squares().items())


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_parts(oracle, reentrant):
    """Computed twice by training, counted once; what autograd does not keep is not kept here, and named."""
    model, data = Model(), batch()
    truth = oracle.contributions(model, entropy, data)
    model.reentrant = reentrant
    for block in model.blocks:
        block.calls = 0
    examples = oracle.measure(model, entropy, data, 4)
    assert [block.calls for block in model.blocks] == [2, 2]
    assert not examples.reason
    inside = {"scale", "attention.in_proj_weight", "attention.out_proj.weight"}
    unknown = set() if reentrant else {f"blocks.{i}.{name}" for i in range(2) for name in inside}
    assert set(examples.uncovered) == unknown
    found = examples.squares()
    assert set(found) == set(truth) - unknown
    for name, square in found.items():
        torch.testing.assert_close(square, truth[name].square().sum(1), rtol=1e-10, atol=1e-25)
    assert examples.judge(oracle.read(examples)) == {}


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_shared_part_in_two_checkpoints_is_named(oracle, reentrant):
    model, data = Model(shared=True), batch()
    truth = oracle.contributions(model, entropy, data)
    model.reentrant = reentrant
    examples = oracle.measure(model, entropy, data, 4)
    assert not examples.reason
    assert {"embed.weight", "head.weight", "head.bias"} <= set(examples.squares())
    assert {"blocks.0.up.weight", "blocks.0.norm.weight", "blocks.0.scale"} <= set(examples.uncovered)
    for name, square in examples.squares().items():
        torch.testing.assert_close(square, truth[name].square().sum(1), rtol=1e-10, atol=1e-25)


def test_offloaded_activations_are_named(oracle):
    def offloaded(model, data):
        with torch.autograd.graph.save_on_cpu():
            return entropy(model, data)

    model = Model()
    examples = oracle.measure(model, offloaded, batch(), 4)
    assert not examples.reason
    assert {"head.weight", "embed.weight"} <= set(examples.uncovered)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler's own
@pytest.mark.parametrize("how", ["module", "inside", "function"])
def test_compiled_modules_are_refused_and_not_compiled_again(oracle, how):
    counters = torch._dynamo.utils.counters["frames"]
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)))
    if how == "inside":
        model[2] = torch.compile(model[2], backend="eager")
        run = model
    else:
        run = torch.compile(model if how == "module" else model.forward, backend="eager")
    loss = lambda _, data: run(*data).square().mean()
    for _ in range(2):
        loss(run, (R(5, 4),)).backward()
    before = dict(counters)
    for _ in range(3):
        examples = oracle.measure(model, loss, (R(5, 4),), 5)
        loss(run, (R(5, 4),)).backward()
    assert dict(counters) == before
    assert not examples.reason
    covered = {"0.weight", "0.bias"} if how == "inside" else set()
    assert set(examples.squares()) == covered
    assert set(examples.uncovered) == set(oracle.named(model)) - covered


def test_autocast(oracle):
    """Factors in bfloat16 are multiplied in float32: as exact as they are, with the loss in autocast or outside."""
    model, data = Model().float(), batch()

    def mixed(model, data):
        with torch.autocast("cpu", torch.bfloat16):
            return entropy(model, data)

    class Inside:
        def __init__(self, loss):
            self.loss = loss

        def backward(self):
            with torch.autocast("cpu", torch.bfloat16):
                self.loss.backward()

    exact, found = oracle.measure(model, entropy, data, 4).squares(), []
    for loss in (mixed, lambda m, d: Inside(mixed(m, d))):
        examples = oracle.measure(model, loss, data, 4)
        assert (examples.reason, examples.uncovered) == ("", {})
        assert examples.judge(oracle.read(examples)) == {}
        for name, square in examples.squares().items():
            assert square.dtype == torch.float64
            scale = exact[name].max()
            assert ((square - exact[name]).abs() / scale).max() < 0.1, name
        found.append(examples.squares())
    for name, square in found[0].items():
        torch.testing.assert_close(square, found[1][name], rtol=1e-6, atol=0)


def test_a_loss_scale_multiplies_every_contribution(oracle):
    model, data = Model(), batch()
    plain = oracle.measure(model, entropy, data, 4).squares()
    scaled = oracle.measure(model, lambda m, d: 1024.0 * entropy(m, d), data, 4).squares()
    for name, square in plain.items():
        torch.testing.assert_close(scaled[name], 1024.0**2 * square, rtol=1e-9, atol=1e-22)


class NoWaiting(TorchDispatchMode):
    """Raises at whatever makes the host wait for a device: reading a number, or a shape that depends on numbers."""

    WAITS = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "equal.default", "is_nonzero", "coalesce")

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if any(wait in str(operation) for wait in self.WAITS):
            raise AssertionError(f"{operation} waits for the device")
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_nothing_waits_for_the_device(oracle, device, monkeypatch):
    """On the meta device there are no numbers: any way to read one fails, also those that a mode does not see."""
    no_random_numbers = lambda _, like, length, side: like.new_ones(check.DIRECTIONS, length)
    model, data = Model().to(device), tuple(tokens.to(device) for tokens in batch())
    if device == "meta":
        monkeypatch.setattr(check.Directions, "of", no_random_numbers)
    padding = None if device == "meta" else 1  # where torch itself looks for it in a sparse gradient
    model.embed = nn.Embedding(11, 8, padding_idx=padding, sparse=True, device=device)
    with NoWaiting():
        examples = oracle.measure(model, entropy, data, 4)
        scopes = examples.in_scopes({"": list(oracle.named(model))})
        evidence = examples.evidence()
    assert (examples.reason, examples.uncovered) == ("", {})
    assert scopes[""].shape == (4,)
    assert {value.device.type for value in [scopes[""], *evidence.values()]} == {device}


@pytest.mark.parametrize("read", [
    torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu, torch.Tensor.nonzero,
    lambda t: t[t > 0], lambda t: bool(t > 0), lambda t: torch.equal(t, t + 1), torch.Tensor.unique,
])  # fmt: skip
def test_reading_would_be_noticed(read):
    with pytest.raises((AssertionError, RuntimeError, TypeError)), NoWaiting():
        read(torch.ones(1, device="meta"))


def test_not_finite_numbers_pass_through(oracle):
    model = nn.Linear(4, 4)
    x = R(5, 4)
    x[2, 1] = float("nan")
    examples = oracle.measure(model, oracle.cubic, (x,), 5)
    assert examples.squares()["weight"].isnan().tolist() == [False, False, True, False, False]
