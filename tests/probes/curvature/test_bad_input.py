"""Bad input to `top_eigenvalues`: a status and a sentence, never an exception into training."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from learnmech.observables import Status
from learnmech.probes.curvature import top_eigenvalues

METHODS = ("auto", "finite_differences", "gauss_newton")
BATCH = (torch.randn(8, 4, generator=torch.Generator().manual_seed(1)), torch.zeros(8, 1))


def network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))


def squares(m, b):
    return mse_loss(m(b[0]), b[1])


class Spare(nn.Module):
    """A network with a parameter of its own."""

    def __init__(self, parameter):
        super().__init__()
        self.net, self.spare = network(), parameter

    def forward(self, x):
        return self.net(x)


def counting(first=0):
    """A loss that depends on how often it was called, and keeps the count where nobody can see it."""
    calls = itertools.count(first)
    return lambda m, b: squares(m, b) * (1 + 0.1 * next(calls))


COMPLEX = nn.Parameter(torch.ones(2, dtype=torch.complex64))
CASES = {
    "frozen": (squares, network().requires_grad_(False), BATCH, Status.UNSUPPORTED, "no trainable parameter"),
    "nan": (lambda m, b: squares(m, b) * math.nan, network(), BATCH, Status.NON_FINITE, "is nan"),
    "infinite": (lambda m, b: squares(m, b) * math.inf, network(), BATCH, Status.NON_FINITE, "is inf"),
    "constant": (lambda m, b: torch.tensor(1.0), network(), BATCH, Status.UNSUPPORTED, "does not depend"),
    "detached": (lambda m, b: squares(m, b).detach(), network(), BATCH, Status.UNSUPPORTED, "does not depend"),
    "empty batch": (squares, network(), (BATCH[0][:0], BATCH[1][:0]), Status.UNSUPPORTED, "holds no examples"),
    "complex parameter": (squares, Spare(COMPLEX), BATCH, Status.UNSUPPORTED, "complex64; the Hessian is defined for"),
    "complex loss": (lambda m, b: squares(m, b) * 1j, network(), BATCH, Status.UNSUPPORTED, "real scalar"),
    "integer loss": (lambda m, b: squares(m, b).long(), network(), BATCH, Status.UNSUPPORTED, "does not depend"),
    "vector loss": (lambda m, b: m(b[0]), network(), BATCH, Status.UNSUPPORTED, "(8, 1), expected a scalar"),
    "no tensor": (lambda m, b: 1.0, network(), BATCH, Status.UNSUPPORTED, "returned float"),
    "counts its calls": (counting(), network(), BATCH, Status.UNSUPPORTED, "not deterministic"),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CASES)
def test_bad_input_has_a_status_and_a_reason(name, method):
    loss, model, batch, status, words = CASES[name]
    before = copy.deepcopy(model.state_dict())
    streams = torch.get_rng_state()
    result = top_eigenvalues(loss, model, [batch], method=method)
    assert result.status is status
    assert words in result.reason
    assert result.eigenvalues.isnan().all()
    assert result.residuals.isnan().all()
    assert not result.converged
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(streams, torch.get_rng_state())


def test_a_loss_that_is_not_deterministic_is_told_what_to_do():
    reason = top_eigenvalues(counting(), network(), [BATCH]).reason
    for words in ("torch.use_deterministic_algorithms(True)", "keep it in the model", "Dropout", "dropout"):
        assert words in reason or words == "Dropout"


@pytest.mark.parametrize("method", METHODS)
def test_dropout_is_deterministic_here(method):
    model = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Dropout(0.5), nn.Linear(9, 1))
    assert top_eigenvalues(squares, model, [BATCH], method=method).status is Status.OK


@pytest.mark.parametrize("method", METHODS)
def test_parameters_outside_the_loss_and_integers_do_no_harm(method):
    alone = top_eigenvalues(squares, network(), [BATCH], method=method)
    beside = top_eigenvalues(squares, Spare(nn.Parameter(torch.ones(3))), [BATCH], method=method)
    assert beside.status is Status.OK
    assert beside.unused == ("spare",)
    whole = top_eigenvalues(
        squares, Spare(nn.Parameter(torch.tensor([3]), requires_grad=False)), [BATCH], method=method
    )
    for result in (beside, whole):
        assert result.eigenvalues.item() == pytest.approx(alone.eigenvalues.item(), rel=1e-3)


@pytest.mark.parametrize("method", ["auto", "double_backward", "finite_differences"])
def test_zero_curvature_is_a_number(method):
    result = top_eigenvalues(lambda m, b: m(b[0]).sum() * 0, network(), [BATCH], method=method)
    assert result.status is Status.OK
    assert result.eigenvalues.item() == 0


@pytest.mark.parametrize("method", METHODS)
def test_programming_mistakes_are_errors(method):
    with pytest.raises(ValueError, match="k is 0"):
        top_eigenvalues(squares, network(), [BATCH], 0, method=method)
    with pytest.raises(ValueError, match="no batches came"):
        top_eigenvalues(squares, network(), [], method=method)
    with pytest.raises(ValueError, match="method is 'pearlmutter'"):
        top_eigenvalues(squares, network(), [BATCH], method="pearlmutter")
