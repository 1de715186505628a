"""Hooks on leaves see each piece of a gradient, change nothing, and say what they cannot use."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from learnmech.probes.estimators.squares import square_sum
from learnmech.probes.noise.leaves import LeafHooks


def _model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 2)).double()


def _pieces(sizes=(4, 4, 7)):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 11, (size,), generator=generator) for size in sizes]


def _loss(model, piece):
    return model(piece).square().mean()


def _alone(model, piece, factor=1.0):
    """The gradient of one piece, by autograd on a copy."""
    other = copy.deepcopy(model)
    other.zero_grad()
    (_loss(other, piece) * factor).backward()
    return {name: p.grad for name, p in other.named_parameters()}


def _watched(model, expected=1):
    hooks = LeafHooks(model, dict(model.named_parameters()), expected)
    hooks.arm()
    return hooks


@pytest.mark.parametrize("told", [True, False])
def test_squared_norm_of_each_piece(told):
    model, pieces = _model(), _pieces()
    hooks = _watched(model, 3)
    for piece in pieces:
        (_loss(model, piece) / 3).backward()
        if told:
            hooks.next_piece()
    seen = hooks.seen()
    assert seen is not None, hooks.trouble
    assert seen.squares.shape == (3, len(list(model.parameters())))
    for row, piece in zip(seen.squares, pieces, strict=True):
        alone = _alone(model, piece, 1 / 3)
        expected = torch.stack([alone[name].square().sum() for name in seen.names])
        torch.testing.assert_close(row, expected, rtol=1e-12, atol=0)


def test_sample_adds_up_to_the_gradient():
    model = _model()
    hooks = _watched(model)
    for piece in _pieces():
        _loss(model, piece).backward()
        hooks.next_piece()
    seen = hooks.seen()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert len(seen.sample) == len(hooks.sample_of(gradients)) > 50
    torch.testing.assert_close(seen.sample, hooks.sample_of(gradients), rtol=1e-12, atol=1e-14)
    gradients["1.weight"] = gradients["1.weight"] * 1.5
    assert not torch.allclose(seen.sample, hooks.sample_of(gradients))


def test_a_parameter_that_some_pieces_do_not_reach():
    model, pieces = _model(), _pieces()
    hooks = _watched(model)
    _loss(model, pieces[0]).backward()
    hooks.next_piece()
    model[3].bias.square().sum().backward()  # reaches one parameter only
    hooks.next_piece()
    seen = hooks.seen()
    column = list(seen.names).index("3.bias")
    assert seen.squares[1, column] > 0
    assert seen.squares[1].sum() == seen.squares[1, column]


def test_the_users_own_hook_comes_first():
    model, piece = _model(), _pieces()[0]
    model[1].weight.register_hook(lambda gradient: 2 * gradient)
    hooks = _watched(model)
    _loss(model, piece).backward()
    seen = hooks.seen()
    expected = model[1].weight.grad.square().sum()
    torch.testing.assert_close(seen.squares[0, list(seen.names).index("1.weight")], expected)


def test_gradients_and_graph_are_as_without_hooks():
    model, other = _model().float(), _model().float()
    hooks = _watched(model)
    for piece in _pieces():
        _loss(model, piece).backward()
        _loss(other, piece).backward()
        hooks.next_piece()
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
    hooks.disarm()


def test_nothing_is_seen_after_disarming():
    model = _model()
    hooks = _watched(model)
    hooks.disarm()
    _loss(model, _pieces()[0]).backward()
    assert hooks.seen() is None
    assert not hooks.trouble


def test_two_backward_passes_in_one_piece_are_told():
    model, pieces = _model(), _pieces()
    hooks = _watched(model)
    _loss(model, pieces[0]).backward()
    _loss(model, pieces[1]).backward()
    hooks.next_piece()
    assert hooks.seen() is None
    assert "in several parts" in hooks.trouble


def test_a_gradient_penalty_is_not_a_contribution():
    model, piece = _model(), _pieces()[0]
    hooks = _watched(model)
    loss = _loss(model, piece)
    penalty = torch.autograd.grad(loss, [model[3].weight], create_graph=True)[0].square().sum()
    (loss + penalty).backward()
    hooks.next_piece()
    seen = hooks.seen()
    assert seen is not None, hooks.trouble
    expected = torch.stack([dict(model.named_parameters())[name].grad.square().sum() for name in seen.names])
    torch.testing.assert_close(seen.squares[0], expected)


def test_non_reentrant_checkpointing_is_one_pass():
    model, piece = _model(), _pieces()[0]
    hooks = _watched(model)
    checkpoint(model, piece, use_reentrant=False).square().mean().backward()
    hooks.next_piece()
    seen = hooks.seen()
    alone = _alone(model, piece)
    torch.testing.assert_close(seen.squares[0], torch.stack([alone[n].square().sum() for n in seen.names]))


def test_sparse_gradients_are_told():
    model = nn.Sequential(nn.Embedding(11, 6, sparse=True), nn.Linear(6, 2))
    hooks = _watched(model)
    _loss(model, _pieces()[0]).backward()
    assert hooks.seen() is None
    assert "0.weight is sparse" in hooks.trouble
    assert model[0].weight.grad is not None


def test_a_failure_inside_a_hook_stays_there(monkeypatch):
    def broken(_):
        raise RuntimeError("no memory left, say")

    monkeypatch.setattr("learnmech.probes.noise.leaves.square_sum", broken)
    model = _model()
    hooks = _watched(model)
    _loss(model, _pieces()[0]).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert hooks.seen() is None
    assert "no memory left" in hooks.trouble


def test_frozen_parameters_are_left_out():
    model = _model()
    model[0].weight.requires_grad_(False)
    hooks = _watched(model)
    _loss(model, _pieces()[0]).backward()
    assert "0.weight" not in hooks.seen().names


def test_a_compiled_model_is_not_compiled_again():
    from torch._dynamo.utils import counters

    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    compiled = torch.compile(model, backend="aot_eager")
    data = torch.randn(4, 6)
    compiled(data).sum().backward()
    before = dict(counters["stats"])
    model.zero_grad()
    hooks = _watched(compiled)
    compiled(data).sum().backward()
    seen = hooks.seen()
    hooks.disarm()
    compiled(data).sum().backward()
    assert dict(counters["stats"]) == before
    expected = dict(compiled.named_parameters())
    assert set(seen.names) == set(expected)
    assert seen.squares.sum() > 0


@pytest.mark.parametrize("spike", [0.0, 30.0])
@pytest.mark.parametrize("count", [1, 1023, 1024, 5000, 2_000_003])
def test_square_sum_to_float32(count, spike):
    numbers = 1e-2 * torch.randn(count, generator=torch.Generator().manual_seed(3))
    numbers[0] += spike
    expected = numbers.double().square().sum()
    torch.testing.assert_close(square_sum(numbers), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_square_sum_of_half_precision(dtype):
    numbers = (1e3 * torch.randn(5000, generator=torch.Generator().manual_seed(3))).to(dtype)
    torch.testing.assert_close(square_sum(numbers), numbers.double().square().sum(), rtol=1e-6, atol=0)


def test_square_sum_of_complex_and_strided_numbers():
    numbers = torch.randn(60, 70, dtype=torch.complex64, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(square_sum(numbers.T), numbers.to(torch.complex128).abs().square().sum())
