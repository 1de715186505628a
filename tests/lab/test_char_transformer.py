import copy

import pytest
import torch

from learnmech.lab.char_transformer import CharTransformer, Shape, next_character_loss
from learnmech.lab.stdlib_text import VOCABULARY, RandomWindows, encode, standard_library

SHAPE = Shape(VOCABULARY, context=24, width=32, heads=2, layers=2, hidden=48)
NOT_INVARIANT = ("embedding.weight", "head.weight", "blocks.0.swiglu.gate.weight", "blocks.1.swiglu.gate.weight")


@pytest.fixture(scope="module")
def model():
    return CharTransformer(SHAPE, seed=1)


@pytest.fixture(scope="module")
def batch():
    return RandomWindows(encode(standard_library(20_000)), context=24, batch=8, steps=1)[0]


def loss_with(model, name, factor, batch):
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        scaled.get_parameter(name).mul_(factor)
        return float(next_character_loss(scaled, batch))


def test_invariant_and_other_matrices_are_all_matrices(model):
    """Twelve of two blocks: query, key, value, output, up and down of each."""
    names = model.scale_invariant()
    matrices = {name for name, p in model.named_parameters() if p.dim() == 2}
    assert len(names) == 12
    assert matrices - set(names) == set(NOT_INVARIANT)


@pytest.mark.parametrize("factor", [0.1, 7.3])
def test_multiplying_an_invariant_matrix_leaves_the_loss(model, batch, factor):
    plain = loss_with(model, "head.weight", 1.0, batch)
    for name in model.scale_invariant():
        assert loss_with(model, name, factor, batch) == pytest.approx(plain, abs=1e-6), name


@pytest.mark.parametrize("name", NOT_INVARIANT)
def test_multiplying_any_other_matrix_changes_the_loss(model, batch, name):
    """The negative control: the claim would be empty if nothing changed the loss."""
    plain = loss_with(model, "head.weight", 1.0, batch)
    assert abs(loss_with(model, name, 3.0, batch) - plain) > 1e-3


def test_invariant_matrices_are_orthogonal_to_their_gradient(model, batch):
    """Euler's theorem for functions of degree zero is the oracle: <w, dL/dw> = 0 exactly."""
    gradients = torch.autograd.grad(next_character_loss(model, batch), list(model.parameters()))
    for (name, weight), gradient in zip(model.named_parameters(), gradients, strict=True):
        cosine = ((weight * gradient).sum() / (weight.norm() * gradient.norm())).item()
        if name in model.scale_invariant():
            assert abs(cosine) < 1e-4, name
        elif name == "head.weight" or "gate" in name:  # the untrained embedding happens to be nearly orthogonal too
            assert abs(cosine) > 1e-3, name


def test_a_position_sees_only_what_came_before(model):
    codes = torch.randint(VOCABULARY, (1, 24), generator=torch.Generator().manual_seed(0))
    changed = codes.clone()
    changed[0, 10] = (changed[0, 10] + 1) % VOCABULARY
    with torch.no_grad():
        plain, other = model(codes), model(changed)
    torch.testing.assert_close(plain[:, :10], other[:, :10], atol=1e-5, rtol=0)
    assert not torch.allclose(plain[:, 10:], other[:, 10:], atol=1e-3)


def test_order_matters_through_the_rotary_positions(model):
    with torch.no_grad():
        forth = model(torch.tensor([[5, 6, 7]]))[0, -1]
        back = model(torch.tensor([[6, 5, 7]]))[0, -1]
    assert not torch.allclose(forth, back, atol=1e-3)


def test_the_untrained_model_knows_nothing(model, batch):
    """Its loss is near that of a uniform guess, log(98) = 4.58 nats, plus what random logits cost."""
    assert 4.3 < loss_with(model, "head.weight", 1.0, batch) < 5.5


def test_the_seed_makes_the_weights_and_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    one, same, other = (CharTransformer(SHAPE, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.head.weight, same.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)


def test_an_odd_size_per_head_is_refused():
    with pytest.raises(ValueError, match="even size per head"):
        Shape(VOCABULARY, width=30, heads=2)
