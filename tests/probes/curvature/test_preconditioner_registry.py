"""Diagonals of other people's optimizers: registered, offered by a method, inside wrappers; and what goes wrong."""

import pytest
import torch
from torch import nn

from learnmech.probes.curvature.preconditioners import (
    NoPreconditioner,
    adam_preconditioner,
    preconditioner_of,
    register_preconditioner,
    registry,
)


@pytest.fixture(autouse=True)
def _registrations(monkeypatch):
    monkeypatch.setattr(registry, "_KNOWN", dict(registry._KNOWN))


class Scaled(torch.optim.Optimizer):
    """Gradient descent with a given P, the simplest optimizer with a diagonal."""

    def __init__(self, parameters, scales, lr=0.1):
        super().__init__(parameters, {"lr": lr})
        self.scales = scales

    def step(self, closure=None):
        for group in self.param_groups:
            for p, scale in zip(group["params"], self.scales, strict=True):
                p.data.addcdiv_(p.grad, scale, value=-group["lr"])


class Offering(Scaled):
    """Says itself what it divides by; `offer` is what its method returns, or raises."""

    offer = None

    def learnmech_preconditioner(self):
        if isinstance(self.offer, Exception):
            raise self.offer
        return self.scales if self.offer is None else self.offer


def pair():
    return [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 2))]


SCALES = [torch.tensor([1.0, 2.0, 3.0]), torch.full((2, 2), 0.5)]


def reason_of(optimizer, parameters, *, yet):
    found = preconditioner_of(optimizer, parameters)
    assert isinstance(found, NoPreconditioner), found
    assert found.yet is yet
    return found.reason


def test_an_unknown_optimizer_says_what_to_type():
    parameters = pair()
    reason = reason_of(Scaled(parameters, SCALES), parameters, yet=False)
    assert "Scaled" in reason
    assert "register_preconditioner(Scaled)" in reason


def test_a_registered_diagonal_is_what_the_step_divides_by():
    @register_preconditioner(Scaled)
    def diagonal(optimizer, parameters):
        known = dict(zip(optimizer.param_groups[0]["params"], optimizer.scales, strict=True))
        return [known[p] for p in parameters]

    parameters = pair()
    optimizer = Scaled(parameters, SCALES)
    for p in parameters:
        p.grad = torch.ones_like(p)
    optimizer.step()
    found = preconditioner_of(optimizer, parameters[::-1])
    for p, scale in zip(parameters[::-1], found, strict=True):
        torch.testing.assert_close(-0.1 * p.grad / (p.detach() - 1), scale)


def test_the_last_registration_counts_also_over_ours():
    parameters = pair()
    register_preconditioner(torch.optim.SGD, torch.optim.Adam)(lambda _, p: [torch.full_like(x, 7.0) for x in p])
    for kind in (torch.optim.SGD, torch.optim.Adam):
        assert preconditioner_of(kind(parameters), parameters)[0].tolist() == [7.0, 7.0, 7.0]


def test_an_optimizer_may_offer_a_list_in_the_order_of_its_groups():
    parameters = pair()
    found = preconditioner_of(Offering(parameters, SCALES), parameters[::-1])
    assert [tuple(p.shape) for p in found] == [(2, 2), (3,)]
    assert found[1].tolist() == [1.0, 2.0, 3.0]
    optimizer = Offering(parameters, SCALES[:1])
    assert "offers 1 tensors for its 2 parameters" in reason_of(optimizer, parameters, yet=False)


def test_an_optimizer_may_offer_a_mapping_without_what_does_not_move():
    parameters = pair()
    optimizer = Offering(parameters, SCALES)
    optimizer.offer = {parameters[1]: SCALES[1]}
    found = preconditioner_of(optimizer, parameters)
    assert found[0].isinf().all()
    assert torch.equal(found[1], SCALES[1])
    assert "none of the 1 parameters" in reason_of(optimizer, parameters[:1], yet=False)
    optimizer.offer = {}
    assert reason_of(optimizer, parameters, yet=True).startswith("not yet")
    optimizer.offer = NoPreconditioner("closed on Sundays", yet=True)
    assert reason_of(optimizer, parameters, yet=True) == "closed on Sundays"


NAN = torch.tensor([1.0, torch.nan, -1.0])

BAD = {
    "shape": (torch.ones(4), False, "shape (4,) for parameter 0; expected (3,)"),
    "NaN": (NAN, True, "divides by NaN"),
    "negative": (torch.tensor([1.0, -2.0, 1.0]), True, "divides by -2"),
    "minus infinity": (torch.tensor([1.0, -torch.inf, 1.0]), True, "divides by -inf"),
    "zero": (torch.tensor([1.0, 0.0, 1.0]), True, "divides by zero"),
    "too small for float32": (torch.tensor([1.0, 1e-60, 1.0], dtype=torch.float64), True, "divides by zero"),
    "complex": (torch.ones(3, dtype=torch.complex64), False, "complex64"),
    "no tensor": (2.0, False, "float for parameter 0"),
    "nothing": (None, False, "NoneType for parameter 0"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_a_bad_diagonal_is_a_reason_and_no_exception(name):
    wrong, yet, expected = BAD[name]
    parameters = pair()
    optimizer = Offering(parameters, [wrong, SCALES[1]])
    reason = reason_of(optimizer, parameters, yet=yet)
    assert expected in reason
    assert reason.startswith("Offering ")


def test_a_hook_that_raises_is_a_reason_but_memory_is_the_callers():
    parameters = pair()
    optimizer = Offering(parameters, SCALES)
    optimizer.offer = KeyError("exp_avg_sq")
    assert "Offering could not be read: KeyError: 'exp_avg_sq'" in reason_of(optimizer, parameters, yet=True)
    optimizer.offer = torch.OutOfMemoryError("full")
    with pytest.raises(torch.OutOfMemoryError):
        preconditioner_of(optimizer, parameters)


def test_types_are_those_of_the_parameters_at_least_float32():
    p = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    (found,) = preconditioner_of(Offering([p], [torch.ones(3, dtype=torch.float64, requires_grad=True)]), [p])
    assert found.dtype == torch.float32
    assert not found.requires_grad
    empty = nn.Parameter(torch.ones(0))
    assert preconditioner_of(Offering([empty], [torch.ones(0)]), [empty])[0].shape == (0,)


def stepped(kind, parameters, **options):
    optimizer = kind(parameters, **options)
    for p in parameters:
        p.grad = torch.full_like(p, 2.0)
    optimizer.step()
    return optimizer


class Named(torch.optim.AdamW):
    """Another name, no other step."""

    def __init__(self, parameters, rate):
        super().__init__(parameters, lr=rate)

    def zero_grad(self, set_to_none=True):
        super().zero_grad(set_to_none)

    def extra(self):
        return 1


class Louder(torch.optim.Adam):
    """Another step, as far as one can tell."""

    def step(self, closure=None):
        return super().step(closure)


class Stepping:
    """A mixin with a step of its own."""

    def step(self, closure=None):
        return super().step(closure)


class Mixed(Stepping, torch.optim.RMSprop):
    """The other step comes from the mixin."""


class Initial(torch.optim.Adam):
    """Other moments."""

    def _init_group(self, *args):
        return super()._init_group(*args)


def test_a_subclass_inherits_unless_it_changes_the_step():
    parameters = pair()
    found = preconditioner_of(stepped(Named, parameters, rate=0.1), parameters)
    expected = adam_preconditioner(stepped(torch.optim.AdamW, parameters), parameters)
    assert torch.equal(found[0], expected[0])
    for kind, changed in ((Louder, "step"), (Mixed, "step"), (Initial, "_init_group")):
        reason = reason_of(stepped(kind, parameters), parameters, yet=False)
        assert f"{kind.__name__} has its own {changed}()" in reason
        assert f"register_preconditioner({kind.__name__})" in reason
    register_preconditioner(Louder)(adam_preconditioner)
    assert not isinstance(preconditioner_of(stepped(Louder, parameters), parameters), NoPreconditioner)


def test_a_patched_step_is_still_the_step():
    """Schedulers and profilers wrap `step`; PyTorch itself patches the class for its hooks."""
    parameters = pair()
    optimizer = stepped(Named, parameters, rate=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    optimizer.register_step_post_hook(lambda *_: None)
    assert isinstance(preconditioner_of(optimizer, parameters), list)


def test_a_step_that_pytorch_wrapped_in_the_subclass_is_inherited():
    """PyTorch wraps `step` in the class of the first optimizer that is made, here the subclass."""

    class Fresh(torch.optim.Optimizer):
        def step(self, closure=None):
            return closure

    class Derived(Fresh):
        pass

    register_preconditioner(Fresh)(lambda _, parameters: [torch.ones_like(p) for p in parameters])
    parameters = pair()
    optimizer = Derived(parameters, {})
    assert "step" in vars(Derived)
    assert isinstance(preconditioner_of(optimizer, parameters), list)


def test_third_parties_are_known_by_name():
    parameters = pair()
    for name, clue in (("Lion", "edge of stability"), ("Shampoo", "Kronecker"), ("Lamb", "step"), ("SOAP", "factors")):
        optimizer = type(name, (Scaled,), {})(parameters, SCALES)
        reason = reason_of(optimizer, parameters, yet=False)
        assert reason.startswith(name + " ")
        assert clue in reason


@pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated")  # importing it scripts a dozen optimizers
def test_zero_redundancy_knows_only_a_part(tmp_path):
    """Its own state holds the moments of this process's parameters; all others would look as if they did not move."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        parameters = pair()
        optimizer = stepped(ZeroRedundancyOptimizer, parameters, optimizer_class=torch.optim.Adam)
        assert "ZeroRedundancyOptimizer keeps" in reason_of(optimizer, parameters, yet=False)
    finally:
        torch.distributed.destroy_process_group()


def test_wrappers_are_looked_into_where_they_only_hand_on():
    lightning = pytest.importorskip("pytorch_lightning.core.optimizer")
    parameters = pair()
    adam = stepped(torch.optim.Adam, parameters)
    expected = preconditioner_of(adam, parameters)
    wrapped = lightning.LightningOptimizer(adam)
    assert type(wrapped).__name__ == "LightningAdam"
    accelerated = type("AcceleratedOptimizer", (), {"__module__": "accelerate.optimizer"})()
    accelerated.optimizer = wrapped  # accelerate is not installed here: its wrapper by name and attribute
    for optimizer in (wrapped, accelerated):
        assert torch.equal(preconditioner_of(optimizer, parameters)[0], expected[0])
    lookahead = type("Lookahead", (torch.optim.Optimizer,), {})(parameters, {})
    lookahead.optimizer = adam
    assert "Lookahead has no known" in reason_of(lookahead, parameters, yet=False)
    endless = type("AcceleratedOptimizer", (), {"__module__": "accelerate.optimizer"})()
    endless.optimizer = endless
    assert "AcceleratedOptimizer" in reason_of(endless, parameters, yet=False)


def test_what_is_no_optimizer_is_a_reason():
    parameters = pair()
    assert "NoneType" in reason_of(None, parameters, yet=False)
    broken = stepped(torch.optim.Adam, parameters)
    broken.param_groups[0].pop("betas")
    assert "KeyError: 'betas'" in reason_of(broken, parameters, yet=True)


def test_state_of_another_kind_is_a_reason():
    parameters = pair()
    optimizer = stepped(torch.optim.Adam, parameters)
    optimizer.param_groups[0]["amsgrad"] = True  # switched on in mid-run
    assert "expected 'max_exp_avg_sq'" in reason_of(optimizer, parameters, yet=False)


def test_complex_parameters_have_two_diagonals():
    p = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    assert "real and imaginary part" in reason_of(stepped(torch.optim.Adam, [p]), [p], yet=False)


def test_moments_that_became_nan_are_a_reason():
    parameters = pair()
    optimizer = stepped(torch.optim.Adam, parameters)
    parameters[1].grad[0, 0] = torch.nan
    optimizer.step()
    assert "Adam divides by NaN" in reason_of(optimizer, parameters, yet=True)


@pytest.mark.parametrize(
    "name", ["Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta", "Adafactor"]
)
def test_nothing_is_written(name):
    """Every tensor of the state has the version it had, and the random numbers go on as they would have."""
    parameters = pair()
    optimizer = stepped(getattr(torch.optim, name), parameters)

    def versions():
        state = [value._version for entry in optimizer.state.values() for value in entry.values()]
        return [len(optimizer.state), *(p._version for p in parameters), *state]

    before, numbers = versions(), torch.get_rng_state()
    diagonal = preconditioner_of(optimizer, [*parameters, nn.Parameter(torch.ones(1))])
    assert diagonal[2].isinf().all()
    for p in diagonal:
        p.add_(1)  # a copy: the caller's to change
    assert versions() == before
    assert torch.equal(torch.get_rng_state(), numbers)
