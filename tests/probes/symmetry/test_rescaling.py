"""The test on the loss itself says the same as the identities on gradients, which it does not use."""

import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from learnmech.probes.probe import TrainingView
from learnmech.probes.symmetry import Certificates, Group, Kind, Part, candidates, rescaling
from learnmech.probes.symmetry.rescaling import RescalingTests, rescaled


def moved(model, loss, batch, kind, label, **settings):
    weights = dict(model.named_parameters())
    group = next(group for group in candidates(model) if (group.kind, group.label) == (kind, label))

    @torch.no_grad()
    def at(new):
        return float(loss(lambda x: torch.func.functional_call(model, {**weights, **new}, (x,)), batch))

    before = [p.detach().clone() for p in model.parameters()]
    found = rescaling(at, group, weights, **settings)
    assert all(map(torch.equal, before, model.parameters())), "the weights themselves are left alone"
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_form_of_a_transformer(dtype, transformer, tokens):
    model, batch = transformer(dtype), tokens.batch()
    for kind, label in [
        ("gated", "blocks.0.up, blocks.0.down"),
        ("value_output", "blocks.1.attention.wv, blocks.1.attention.wo"),
        ("query_key_pair", "blocks.0.attention.wq, blocks.0.attention.wk, halves"),
        ("residual_stream", "stream of 32"),
        ("shift", "head"),
        ("rescale", "norm, head"),
    ]:
        found = moved(model, tokens.loss, batch, kind, label)
        assert found.invariant, (kind, label, found)
    for kind, label in [("gated", "blocks.0.gate, blocks.0.down"), ("scale", "head"), ("shift", "blocks.0.down")]:
        found = moved(model, tokens.loss, batch, kind, label)
        assert found.invariant is False, (kind, label, found)


def test_normalizations_and_what_is_none(examples):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 5)).double()
    nn.init.normal_(model[0].bias)
    batch = examples.batch(32, 6)
    assert moved(model, examples.loss, batch, "scale", "0 with bias").invariant
    assert moved(model, examples.loss, batch, "scale", "0").invariant is False, "the bias is scaled along"
    assert moved(model, examples.loss, batch, "scale", "3").invariant is False


def test_what_cannot_be_told_is_not_guessed(examples):
    model, batch = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 5)).double(), examples.batch(8, 6)
    noisy = lambda call, batch: examples.loss(call, batch) + torch.rand(())
    assert moved(model, noisy, batch, "rescale", "0, 2").invariant is None, "the loss is not deterministic"
    flat = lambda call, batch: 1.0 + 0.0 * examples.loss(call, batch)
    assert moved(model, flat, batch, "rescale", "0, 2").invariant is None, "the loss does not feel these weights at all"
    lost = lambda call, batch: examples.loss(call, batch) * float("nan")
    assert moved(model, lost, batch, "rescale", "0, 2").invariant is None


ROWS = ("reshape", (-1, 4))
PARTS = {
    "whole": Part("w", (("flatten", (1,)),)),
    "a view of all": Part("w", (ROWS,)),
    "all in another order": Part("w", (("t", ()), ROWS)),
    "a view of some": Part("w", (("narrow", (0, 2, 2)),)),
    "some in another order": Part("w", (("narrow", (0, 2, 2)), ("t", ()), ROWS)),
}


@pytest.mark.parametrize("form", PARTS)
@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_part_is_moved_wherever_it_lies(form, layout, dtype):
    """Against the same with a mask, in float64; the tensor lies in memory row by row, or column by column."""
    torch.manual_seed(0)
    w = torch.randn(6, 8).to(dtype)
    w = w if layout == "rows" else w.t().contiguous().t()
    part, before = PARTS[form], w.clone()
    mask = torch.zeros(6, 8, dtype=torch.bool)
    mask[slice(2, 4) if "some" in form else slice(None)] = True
    rms = w[mask].double().square().mean().sqrt()
    for kind, expected in (
        (Kind.SCALE, torch.where(mask, 1.5 * w.double(), w.double())),
        (Kind.SHIFT, torch.where(mask, w.double() + 0.5 * rms, w.double())),
    ):
        group, place = Group(kind, "", (part,), ""), w.clone()
        for into in (None, {"w": place}):
            found = rescaled(group, {"w": w}, 1.5, into)["w"]
            assert (found is place) == (into is not None)
            torch.testing.assert_close(found, expected.to(dtype), rtol=0, atol=0)
            assert torch.equal(w, before)
    rescaling(lambda moved: float(sum(t.sum() for t in moved.values())), group, {"w": w}, into={"w": place})
    assert torch.equal(place[~mask], w[~mask]), "the control moves the part alone"
    moved = (place - w)[mask].double().norm()
    assert moved == pytest.approx(float(0.01 * w[mask].double().norm()), rel=0.5 if dtype == torch.bfloat16 else 1e-2)


class Peak(TorchDispatchMode):
    """Adds up the bytes of the tensors that are there at a time, of those made while it watches."""

    def __init__(self):
        super().__init__()
        self.bytes = self.peak = 0
        self.known = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {t.untyped_storage().data_ptr() for t in torch.utils._pytree.tree_leaves(args) if torch.is_tensor(t)}
        found = func(*args, **(kwargs or {}))
        for made in torch.utils._pytree.tree_leaves(found):
            if torch.is_tensor(made) and made.untyped_storage().data_ptr() not in given:
                size = made.untyped_storage().nbytes()
                self.bytes += size
                self.peak = max(self.peak, self.bytes)
                weakref.finalize(made, self.freed, size)
        return found

    def freed(self, size):
        self.bytes -= size


def test_all_weights_of_a_model_are_rescaled_in_the_memory_of_one():
    """Sixteen tensors of 1 MB, in the place of others; new ones would take 16 MB."""
    weights = {f"w{i}": torch.randn(512, 512) for i in range(16)}
    places = {name: w.clone() for name, w in weights.items()}
    group = Group(Kind.SCALE, "", tuple(Part(name, (("flatten", (0,)),)) for name in weights), "")
    size = lambda moved: float(sum(w.square().sum() for w in ({**weights} | {**moved}).values()))
    with Peak() as watch:
        assert rescaling(size, group, weights, into=places).invariant is False
    inside = watch.peak
    with Peak() as watch:
        rescaling(size, group, weights)
    assert inside < 5e6, "one in float64, and what the loss takes"
    assert watch.peak > 16e6


class Leaves:
    """A loss of copies of the weights, as isolation hands it out: the sum of their cubes and products."""

    def __init__(self, weights):
        self.leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
        self.now = list(self.leaves.values())

    def at(self, tensors, work):
        self.now = list(tensors)
        found, self.now = work(), list(self.leaves.values())
        return found

    def __call__(self, batch):
        return sum(w.pow(3).sum() for w in self.now) + batch * torch.stack([w.sum() for w in self.now]).prod()


def test_a_test_in_the_place_of_the_leaves_is_that_of_copies():
    """Bit for bit; the leaves end as they were, and none is given to the loss: autocast keeps casts of leaves."""
    torch.manual_seed(0)
    weights = {name: torch.randn(4, 4).requires_grad_() for name in "abc"}
    groups = [Group(Kind.SCALE, name, (Part(name, (("flatten", (0,)),)),), name) for name in "ab"]
    loss, given = Leaves(weights), []
    at = loss.at
    loss.at = lambda tensors, work: at([given.append(t) or t for t in tensors], work)
    view = TrainingView(0, nn.ParameterDict(weights), [], weights, lambda work, **_: work(loss), None, None, batch=0.5)
    tests = RescalingTests()
    tests.next(view, groups)
    assert not tests.found, "together they failed"
    other = Leaves(weights)
    copies = lambda new: float(other.at([(weights | new)[name] for name in "abc"], lambda: other(0.5)))
    for group in groups:
        tests.next(view, [group])
        with torch.no_grad():
            assert tests.found[group.kind, group.label] == rescaling(copies, group, weights)
        assert all(torch.equal(leaf, weights[name]) for name, leaf in loss.leaves.items())
    assert len(given) == 3 * 5 * 3
    moved = [t for t in given if all(t is not leaf for leaf in loss.leaves.values())]
    assert len(moved) == (2 + 2 + 1) + 3 + 3, "two rescalings and the control: together, then each alone"
    assert not any(t.requires_grad for t in moved)


def test_what_the_loss_contradicts_waits_twice_as_long_each_time():
    group = Group(Kind.SCALE, "w", (Part("w"),), "w")
    given = Certificates(refuses=False)
    given.offer([group])
    tests = []
    for look in range(1, 1001):
        given.look(group, 0.0, 1e-4)
        if given.certified():
            given.contradict(group)
            tests.append(look)
    assert tests == [5, 15, 35, 75, 155, 315, 635]
