"""What is not covered is named, with a reason, and never passed off as part of a whole."""

import pytest
import torch
from torch import nn
from torch.nn import functional

R = torch.randn


class Use(nn.Module):
    """A linear layer, and a parameter that is used in some way."""

    def __init__(self, use, shape=(4, 4)):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.extra = nn.Parameter(R(shape))
        self.use = use

    def forward(self, x):
        return self.use(self.layer(x), self.extra)


COVERED = {
    "matrix": (lambda x, p: x @ p, (4, 4)),
    "transposed matrix": (functional.linear, (4, 4)),
    "sum": (lambda x, p: torch.add(x, p, alpha=3.0), (4,)),
    "difference": (lambda x, p: torch.sub(x, p, alpha=3.0), (4,)),
    "the other difference": (lambda x, p: p - x, (3, 1)),
    "product": (lambda x, p: p * x, (4,)),
    "part": (lambda x, p: x + p[:, 1:5], (3, 6)),
    "product with a part": (lambda x, p: x * p[1], (3, 4)),
    "turned": (lambda x, p: x + p.T, (4, 3)),
    "on rows": (lambda x, p: torch.addmm(x.new_ones(4), x.flatten(0, 1), p).view_as(x), (4, 4)),
    "scalar": (lambda x, p: x * p, ()),
}


@pytest.mark.parametrize("use", COVERED)
def test_uses_in_the_graph(oracle, use):
    oracle.check(Use(*COVERED[use]), oracle.cubic, (R(5, 3, 4),))


NOT_COVERED = {
    "function of it": (lambda x, p: x * p.sin(), (4,), "without a rule"),
    "two kinds of use": (lambda x, p: x @ p + p[0], (4, 4), "not known"),
    "rows of its own": (lambda x, p: x + p, (5, 1, 4), "rows of its own"),
    "batch in the columns": (lambda x, p: (p @ x.flatten(0, 1).T).T.view_as(x), (4, 4), "without a rule"),
    "flattened": (lambda x, p: (x.flatten(0, 1) @ p).cos().view_as(x), (4, 4), "no dimension of the 5 examples"),
}


@pytest.mark.parametrize("use", NOT_COVERED)
def test_other_uses_are_named(oracle, use):
    function, shape, reason = NOT_COVERED[use]
    model, x = Use(function, shape), R(5, 3, 4)
    examples = oracle.measure(model, oracle.cubic, (x,), 5)
    assert list(examples.uncovered) == ["extra"]
    assert reason in examples.uncovered["extra"]
    numbers = model.extra.numel()
    assert examples.coverage == pytest.approx(20 / (20 + numbers))
    scopes = {"": ["extra", "layer.weight", "layer.bias"], "layer": ["layer.weight", "layer.bias"]}
    assert set(examples.in_scopes(scopes)) == {"layer"}
    if use != "rows of its own":
        truth = oracle.contributions(model, oracle.cubic, (x,))["layer.weight"].square().sum(1)
        torch.testing.assert_close(examples.squares()["layer.weight"], truth, rtol=1e-10, atol=0)


def test_a_use_outside_of_the_modules_is_found_out(oracle):
    """A penalty in the loss, or a function on the output: what is missing shows in the projections."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    for loss in (
        lambda m, b: oracle.cubic(m, b) + 0.1 * m[0].weight.square().sum(),
        lambda m, b: functional.linear(m(*b), m[0].weight, m[1].bias).square().sum(),
    ):
        examples = oracle.measure(model, loss, (R(5, 3, 4),), 5)
        found = examples.judge(oracle.read(examples))
        assert "0.weight" in found
        assert "add up" in found["0.weight"]
        assert examples.uncovered == found
        assert examples.coverage < 1
        assert "0.weight" not in examples.squares()
        assert "1.weight" in examples.squares()


def test_a_hook_that_changes_gradients_is_found_out(oracle):
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), R(5, 4)
    handle = model[0].weight.register_hook(lambda g: g * 1.1)
    examples = oracle.measure(model, oracle.cubic, (x,), 5)
    assert set(examples.judge(oracle.read(examples))) == {"0.weight"}
    handle.remove()

    def scaled(module, args, output):
        output.register_hook(lambda g: g * 1.1)

    model[0].register_forward_hook(scaled)
    examples = oracle.measure(model, oracle.cubic, (x,), 5)
    assert set(examples.judge(oracle.read(examples))) == {"0.weight", "0.bias"}


def test_a_gradient_that_is_rounding_is_no_false_alarm(oracle):
    """The bias of the keys moves no softmax: its gradient is zero but for rounding."""

    class Keys(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.key = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return functional.scaled_dot_product_attention(self.query(x), self.key(x), x)

    model = Keys().float()
    for seed in range(20):
        examples = oracle.measure(model, oracle.cubic, (R(6, 9, 8, dtype=torch.float32),), 6, seed=seed)
        assert examples.judge(oracle.read(examples)) == {}
        assert model.key.bias.grad.norm() < 1e-4 * model.query.bias.grad.norm()


def test_no_evidence_unless_asked_for(oracle):
    examples = oracle.measure(nn.Linear(4, 4), oracle.cubic, (R(5, 4),), 5, verify=False)
    assert examples.evidence() == {}
    assert examples.coverage == 1.0


def test_batch_statistics_are_refused(oracle):
    model, x = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), R(5, 4)
    examples = oracle.measure(model, oracle.cubic, (x,), 5)
    assert "BatchNorm1d" in examples.reason
    assert (examples.squares(), examples.evidence(), examples.coverage) == ({}, {}, 0.0)
    model.eval()
    examples = oracle.measure(model, oracle.cubic, (x,), 5)
    truth = oracle.contributions(model, oracle.cubic, (x,))
    assert not examples.reason
    for name, square in examples.squares().items():
        torch.testing.assert_close(square, truth[name].square().sum(1), rtol=1e-10, atol=0)
    assert {"0.weight", "0.bias", "2.weight", "2.bias"} <= set(examples.squares())


def test_batch_of_one_is_refused(oracle):
    assert "batch of 1" in oracle.measure(nn.Linear(4, 4), oracle.cubic, (R(1, 4),), 1).reason


def test_a_recurrent_layer_is_named(oracle):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.lstm(x)[0])

    examples = oracle.measure(Model(), oracle.cubic, (R(5, 3, 4),), 5)
    assert set(examples.squares()) == {"head.weight", "head.bias"}
    assert all(name.startswith("lstm.") for name in examples.uncovered)


def test_frozen_and_unused_parameters(oracle):
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), R(5, 4)
    model[0].weight.requires_grad_(False)
    model.register_parameter("unused", nn.Parameter(R(3)))
    examples = oracle.measure(model, oracle.cubic, (x,), 5)
    assert set(examples.squares()) == {"0.bias", "1.weight", "1.bias", "unused"}
    assert examples.squares()["unused"].tolist() == [0.0] * 5
    assert examples.coverage == 1.0


def test_as_many_positions_as_examples_are_not_guessed(oracle):
    """Sequence-first layers in the model: [T, B, d] and [B, T, d] look the same for T = B."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside, self.attention = nn.Linear(8, 8), nn.MultiheadAttention(8, 2)

        def forward(self, x):
            x = self.inside(x)
            return self.attention(x, x, x, need_weights=False)[0]

    model = Model()
    loss = lambda model, batch: oracle.cubic(model, batch, 1)
    oracle.check(model, loss, (R(3, 5, 8),), 1)
    examples = oracle.measure(model, loss, (R(5, 5, 8),), 5)
    assert set(examples.uncovered) == {"inside.weight", "inside.bias"}
    assert "as many positions as examples" in examples.uncovered["inside.bias"]


@pytest.mark.parametrize(
    "turn", [lambda x: x.transpose(0, 1), lambda x: x.transpose(-2, -3), lambda x: x.permute(1, 0, 2)]
)
def test_a_model_that_turns_examples_and_positions(oracle, turn):
    """The same, with nothing but a transposition in the graph to tell it."""

    class Model(nn.Module):
        def __init__(self, turn):
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
            self.turn = turn

        def forward(self, x):
            return self.turn(self.second(self.turn(torch.tanh(self.first(x)))))

    model = Model(turn)
    examples = oracle.measure(model, oracle.cubic, (R(5, 3, 8),), 5)
    assert set(examples.uncovered) == {"second.weight", "second.bias"}  # [3, 5, 8] has no examples in front
    examples = oracle.measure(model, oracle.cubic, (R(5, 5, 8),), 5)
    assert set(examples.uncovered) == set(oracle.named(model))
    assert examples.squares() == {}


def test_weights_made_of_others_are_named(oracle):
    model, x = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), R(5, 3, 4)
    examples = oracle.measure(model, oracle.cubic, (x,), 5)
    assert set(examples.squares()) == {"bias"}
    assert set(examples.uncovered) == {"parametrizations.weight.original0", "parametrizations.weight.original1"}


def test_a_layer_whose_weight_is_computed(oracle):
    """As the older `weight_norm` does it: the layer's own attribute is no parameter."""
    model, x = nn.Sequential(nn.Linear(4, 4)), R(5, 3, 4)
    layer = model[0]
    del layer.weight
    layer.register_parameter("weight_v", nn.Parameter(R(4, 4)))
    layer.register_forward_pre_hook(lambda module, args: setattr(module, "weight", module.weight_v.sin()))
    examples = oracle.measure(model, oracle.cubic, (x,), 5)
    assert not examples.reason
    assert (set(examples.squares()), set(examples.uncovered)) == ({"0.bias"}, {"0.weight_v"})


def test_norms_in_a_model_that_turns_examples_and_positions(oracle):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(8)

        def forward(self, x):
            return self.norm(x.tanh().transpose(0, 1)).transpose(0, 1)

    model = nn.Sequential(Model())
    examples = oracle.measure(model, oracle.cubic, (R(5, 5, 8, requires_grad=True),), 5)
    assert set(examples.uncovered) == {"0.norm.weight", "0.norm.bias"}


def test_complex_parameters_are_named(oracle):
    model = nn.Linear(4, 4, dtype=torch.complex128)
    loss = lambda model, batch: model(*batch).abs().square().sum()
    examples = oracle.measure(model, loss, (R(5, 4, dtype=torch.complex128),), 5)
    assert set(examples.uncovered.values()) == {"it is complex"}


def test_counts_over_the_batch_are_refused(oracle):
    model = nn.Embedding(5, 3, scale_grad_by_freq=True)
    examples = oracle.measure(model, oracle.cubic, (torch.randint(5, (4, 9)),), 4)
    assert "counts" in examples.uncovered["weight"]


def test_two_backward_passes_are_refused(oracle):
    model = nn.Linear(4, 4)

    def twice(model, batch):
        oracle.cubic(model, batch).backward()
        return oracle.cubic(model, batch)

    examples = oracle.measure(model, twice, (R(5, 4),), 5)
    assert all("in parts" in reason for reason in examples.uncovered.values())
    assert examples.squares() == {}


def test_no_backward_pass(oracle):
    model = nn.Linear(4, 4)
    with oracle.PerExample(model, oracle.named(model), 5) as examples:
        model(R(5, 4))
    assert (examples.squares(), examples.coverage) == ({}, 0.0)


def test_a_parameter_of_another_model(oracle):
    other = nn.Parameter(R(4))
    model = nn.Linear(4, 4)
    loss = lambda m, b: (m(*b) * other).square().sum()
    examples = oracle.measure(model, loss, (R(5, 4),), 5, parameters={**oracle.named(model), "other": other})
    assert list(examples.uncovered) == ["other"]
