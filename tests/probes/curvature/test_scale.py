"""Losses far from 1 in size: the spectrum scales with them, and nothing is lost below or above the range of squares.

The oracle is a closed form: L = c/2 sum_i s_i m_i tanh(m_i) with m = w - 1/2 has the Hessian c diag(s) at m = 0.
"""

import math

import pytest
import torch
from torch import Tensor, nn

from learnmech.observables import Status
from learnmech.probes.curvature import top_eigenvalues
from learnmech.probes.curvature.solvers.basis import Basis
from learnmech.probes.curvature.solvers.lanczos import lanczos
from learnmech.probes.curvature.space import SLICE, Space

SCALES = [1e-33, 1e-25, 1e-19, 1.0, 1e19, 1e25, 1e33]
SPECTRUM = torch.cat([torch.tensor([3.0, 2.0]), torch.linspace(0.0, 0.5, 998), torch.tensor([-1.0])])
CPU = torch.device("cpu")


class Bowl(nn.Module):
    """The loss of the closed form; the weights are not at zero, so that differences have a scale for their steps."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((len(SPECTRUM),), 0.5))
        self.scale = scale

    def forward(self, _: Tensor) -> Tensor:
        moved = self.w - 0.5
        return (self.scale * SPECTRUM * (moved.tanh() * moved)).sum() / 2 + self.scale


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    loss: Tensor = model(batch)
    return loss


def measure(scale: float, **settings):
    return top_eigenvalues(loss_of, Bowl(scale), [torch.zeros(1)], **settings)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("method", ["auto", "double_backward", "finite_differences"])
def test_eigenvalues_follow_the_scale_of_the_loss(scale, method):
    found = measure(scale, k=2, method=method)
    assert found.status is Status.OK, found.reason
    values, residuals = found.eigenvalues / scale, found.residuals / scale
    assert values.tolist() == pytest.approx([3.0, 2.0], rel=1e-4 if method == "finite_differences" else 2e-6)
    assert ((values - torch.tensor([3.0, 2.0])).abs() <= residuals).all()
    assert (residuals < 0.01).all()


@pytest.mark.parametrize("scale", SCALES)
def test_both_ends_and_a_warm_start(scale):
    cold = measure(scale, which="both", accuracy=0.01)
    warm = measure(scale, which="both", accuracy=0.01, start=cold)
    for found in (cold, warm):
        assert found.status is Status.OK, found.reason
        assert (found.eigenvalues / scale).tolist() == pytest.approx([3.0, -1.0], rel=0.01)
    assert warm.products <= cold.products


@pytest.mark.parametrize("scale", SCALES)
def test_a_restarted_basis(scale):
    diagonal, drawn = scale * SPECTRUM, torch.Generator().manual_seed(0)
    found = lanczos(
        lambda v: diagonal * v,
        torch.randn(1, len(SPECTRUM), generator=drawn),
        max_products=200,
        max_basis=8,
        tol=1e-5,
        draw=lambda: torch.randn(len(SPECTRUM), generator=drawn),
    )
    assert found.converged
    assert float(found.values[0]) / scale == pytest.approx(3.0, rel=1e-6)
    assert found.asymmetry < 1e-5
    assert found.vectors.norm(dim=1).tolist() == pytest.approx([1.0], abs=1e-6)


@pytest.mark.parametrize("scale", [1e-38, 1e-41])
def test_numbers_below_full_precision_are_refused(scale):
    found = measure(scale, method="double_backward")
    assert found.status is Status.UNSUPPORTED
    assert "less than torch.float32 holds at full precision: multiply the loss" in found.reason


def test_numbers_above_the_range_are_not_finite():
    found = measure(3e38, method="double_backward", check=False)  # 3 c is above the largest number
    assert found.status is Status.NON_FINITE
    assert not math.isfinite(float(found.eigenvalues[0]))


def test_no_curvature_is_zero_at_any_scale():
    space = Space(10, torch.float32, CPU)
    basis = Basis(space, 1e-7)
    basis.add(torch.ones(10))
    assert basis.multiply(0, torch.zeros_like)
    assert basis.ritz().values.tolist() == [0.0]


def test_an_operator_that_returns_its_argument_leaves_the_basis_alone():
    space = Space(10, torch.float32, CPU)
    basis = Basis(space, 1e-7)
    basis.add(torch.arange(10.0))
    basis.multiply(0, lambda v: v)
    assert basis.ritz().values.tolist() == pytest.approx([1.0])
    assert float(basis.vectors[0].norm()) == pytest.approx(1.0)


@pytest.mark.parametrize("size", [1000, SLICE, 3 * SLICE + 7])
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-9, 1.0, 1e9, 1e20, 1e30])
def test_dot_products_are_right_at_any_scale_and_length(size, scale):
    """Against sums in float64, for numbers alike and for one large one among many small."""
    space = Space(size, torch.float32, CPU)
    drawn = torch.Generator().manual_seed(1)
    even = scale * torch.randn(size, generator=drawn)
    spike = torch.full((size,), 1e-3 * scale)
    spike[7] = 3.0 * scale
    unit = torch.randn(size, generator=drawn)
    for vector in (even, spike):
        true = float(vector.double().norm())
        assert float(space.norm(vector)) == pytest.approx(true, rel=3e-7)
        assert float(space.norm(space.unit(vector))) == pytest.approx(1.0, rel=1e-6)
        along = float(space.dot(unit, vector))
        assert along == pytest.approx(float(unit.double() @ vector.double()), abs=1e-7 * true * float(unit.norm()))
    assert space.dots([], even).tolist() == []
