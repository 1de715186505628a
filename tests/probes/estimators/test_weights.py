"""Norms, updates and angles against float64 arithmetic on whole vectors."""

import math
from collections import defaultdict

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from learnmech.probes.estimators import Motion, angle, gradient_sums, total, update_sums, weights

BOTH = pytest.mark.parametrize("fused", [False, True], ids=["by blocks", "fused kernels"])
"""The two ways to take the sums: on the CPU, and on accelerators (whose kernels the CPU has too, only slower)."""


@pytest.fixture
def sums(request, monkeypatch):
    """The functions under test, by the way that the test asks for."""
    if request.getfixturevalue("fused"):
        monkeypatch.setattr(weights, "_update_sums_cpu", weights._update_sums_fused)
        monkeypatch.setattr(weights, "_gradient_sums_cpu", weights._gradient_sums_fused)


def measured(before, after=None, gradients=None):
    """Measure tensors as the probe does."""
    moved = update_sums(before, before if after is None else after).tolist()
    slopes = [None] * len(before) if gradients is None else gradients
    seen = [index for index, g in enumerate(slopes) if g is not None]
    rows = gradient_sums([before[i] for i in seen], [slopes[i] for i in seen]).tolist() if seen else []
    found = defaultdict(lambda: (0.0, 0.0, 0), {i: (*row, 1) for i, row in zip(seen, rows, strict=True)})
    return [Motion(weights.real_numbers(w), *moved[i], *found[i]) for i, w in enumerate(before)]


def true_angle(w, v):
    """2 atan2(|u - v|, |u + v|) of unit vectors in float64 (Kahan): from the vectors, not from sums."""
    u, v = w.double().flatten(), v.double().flatten()
    u, v = u / u.norm(), v / v.norm()
    return 2 * math.atan2((u - v).norm().item(), (u + v).norm().item())


@BOTH
@pytest.mark.parametrize("radians", [1e-6, 1e-5, 1e-4, 1e-3, 0.1, 1.0, 2.0, 3.1, math.pi])
@pytest.mark.parametrize("stretch", [1.0, 1.001, 0.5, 30.0])
def test_angles_in_float32(radians, stretch, fused, sums):
    generator = torch.Generator().manual_seed(0)
    w, other = torch.randn(2, 200, 50, generator=generator, dtype=torch.float64)
    across = other - (other * w).sum() / w.square().sum() * w
    across *= w.norm() / across.norm()
    moved = stretch * (math.cos(radians) * w + math.sin(radians) * across)
    w, moved = w.float(), moved.float()
    (motion,) = measured([w], [moved])
    truth = true_angle(w, moved)
    # fused kernels round w' - w to float32, which shows where the update is a thousand times longer than what it turns
    floor = 1e-4 * motion.relative_update if fused else 1e-9
    assert motion.angular_update == pytest.approx(truth, abs=1e-6 + floor)
    assert abs(motion.angular_update - truth) <= (1e-4 if stretch <= 1.001 else 0.1) * truth + floor
    assert motion.angular_update == pytest.approx(radians, abs=1e-5 + floor)
    if radians <= 1e-4:  # what is usually done reads zero, or nothing but rounding
        naive = torch.acos((w * moved).sum() / (w.norm() * moved.norm())).item()
        assert not abs(naive - truth) < 0.1 * truth


def test_angle_of_triangles():
    def of_sides(a, b, c):
        return angle(a * a, c * c, (b * b - a * a - c * c) / 2)

    assert of_sides(3.0, 4.0, 5.0) == pytest.approx(math.pi / 2)
    assert of_sides(1.0, 1.0, 1.0) == pytest.approx(math.pi / 3)
    assert angle(1.0, 4.0, 2.0) == 0.0  # stretched only: w' = 3 w
    assert angle(1.0, 16.0, -4.0) == pytest.approx(math.pi)  # w' = -3 w
    assert angle(1.0, 4e-18, -2e-18) == pytest.approx(2e-9, rel=1e-9)
    assert angle(1.0, 4.0, 2.0 * (1 + 1e-16)) == 0.0  # no triangle, by rounding
    for nothing in ((0.0, 1.0, 0.0), (1.0, 1.0, -1.0), (math.nan, 1.0, 0.0), (1.0, math.nan, 0.0)):
        assert math.isnan(angle(*nothing))


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64])
def test_all_numbers_match_float64(dtype, fused, sums, monkeypatch):
    monkeypatch.setattr(weights, "BLOCK", 256)  # some tensors are one block, one is three
    monkeypatch.setattr(weights, "GROUP", 800)
    generator = torch.Generator().manual_seed(1)
    shapes = [(30, 20), (7,), (), (2, 3, 4, 5), (40, 1), (0, 3)]
    draw = lambda shape: torch.randn(shape, generator=generator, dtype=dtype if dtype.is_complex else None)
    before = [draw(shape).to(dtype) for shape in shapes]
    before[0] = before[0].T  # not contiguous
    after = [w + (0.01 * draw(w.shape)).to(dtype) for w in before]
    gradients = [draw(w.shape).to(dtype) for w in before]
    gradients[1] = None
    each = measured(before, after, gradients)

    def expected(w, v, g):
        """From complex or real vectors in double precision: a complex number counts by its true absolute value."""
        double = torch.complex128 if dtype.is_complex else torch.float64
        w, v, g = w.to(double), v.to(double), g.to(double)
        real = lambda x: torch.view_as_real(x) if dtype.is_complex else x
        along = (w.conj() * g).sum().real.abs() / (w.norm() * g.norm())
        return {
            "weight_norm": w.norm().item(),
            "weight_rms": w.norm().item() / math.sqrt(real(w).numel()) if w.numel() else math.nan,
            "update_norm": (v - w).norm().item(),
            "gradient_norm": g.norm().item(),
            "relative_update": ((v - w).norm() / w.norm()).item(),
            "angular_update": true_angle(real(w), real(v)) if w.numel() else math.nan,
            "scale_invariance": along.item(),
        }

    for motion, *tensors in zip(each, before, after, gradients, strict=True):
        if tensors[2] is None:
            assert motion.gradients == 0
            assert math.isnan(motion.gradient_norm)
            assert math.isnan(motion.scale_invariance)
            tensors[2] = torch.full_like(tensors[0], math.nan)
        for name, value in expected(*tensors).items():
            assert getattr(motion, name) == pytest.approx(value, rel=2e-6, abs=1e-8, nan_ok=True), name
    zeros = [torch.zeros_like(w) if g is None else g for w, g in zip(before, gradients, strict=True)]
    joined = [torch.cat([t.flatten() for t in tensors]) for tensors in (before, after, zeros)]
    for name, value in expected(*joined).items():
        assert getattr(total(each), name) == pytest.approx(value, rel=2e-6, abs=1e-9), name


@BOTH
def test_large_tensors_lose_no_digits(fused, sums):
    """Adding up five million float32 squares in float32, one after another, is wrong in the fourth digit."""
    generator = torch.Generator().manual_seed(3)
    w = torch.randn(5_000_000, generator=generator)
    w[1000] = 1e4
    v, g = w + 1e-3 * torch.randn(w.shape, generator=generator), torch.randn(w.shape, generator=generator)
    (motion,) = measured([w], [v], [g])
    wide, step, slope = w.double().numpy(), (v.double() - w.double()).numpy(), g.double().numpy()
    assert motion.weight_sq == pytest.approx(float(wide @ wide), rel=1e-12)
    assert motion.gradient_sq == pytest.approx(float(slope @ slope), rel=1e-12)
    assert motion.update_sq == pytest.approx(float(step @ step), rel=1e-6)  # s rounds to float32 in fused kernels
    assert motion.along_update == pytest.approx(float(wide @ step), rel=1e-5)
    assert motion.along_gradient == pytest.approx(float(wide @ slope), rel=1e-5 if fused else 1e-12)


def test_what_is_not_known_is_nan():
    (motion,) = measured([torch.ones(3)])
    assert motion.weight_norm == pytest.approx(math.sqrt(3))
    assert motion.update_norm == motion.relative_update == motion.angular_update == 0.0
    assert math.isnan(motion.gradient_norm)
    assert math.isnan(motion.scale_invariance)
    (dead,) = measured([torch.zeros(3)], [torch.ones(3)], [torch.zeros(3)])
    assert dead.update_norm == pytest.approx(math.sqrt(3))
    for name in ("relative_update", "angular_update", "scale_invariance"):
        assert math.isnan(getattr(dead, name))
    for bad in (math.nan, math.inf):
        (broken,) = measured([torch.tensor([1.0, bad])], [torch.ones(2)])
        assert not math.isfinite(broken.weight_norm)
    nothing = total([])
    assert nothing.weight_norm == 0.0
    assert math.isnan(nothing.weight_rms)
    with pytest.raises(ValueError, match="expected as many"):
        update_sums([torch.ones(3)], [])
    with pytest.raises(ValueError, match="no tensors came"):
        gradient_sums([], [])


def test_scale_invariance_is_seen_and_its_absence_too():
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8, eps=1e-12), nn.GELU(), nn.Linear(8, 3))
    x, y = torch.randn(64, 6), torch.randint(0, 3, (64,))
    cross_entropy(model(x), y).backward()
    before_norm, last = model[0].weight, model[3].weight
    invariant, ordinary = measured([before_norm, last], gradients=[before_norm.grad, last.grad])
    assert invariant.scale_invariance < 1e-6
    assert ordinary.scale_invariance > 1e-2


def test_sparse_gradients_count_every_entry():
    """An embedding's sparse gradient lists a row twice if it was looked up twice: the two add up."""
    table = nn.Embedding(10, 4, sparse=True)
    other = nn.Embedding(10, 4)
    other.load_state_dict(table.state_dict())
    for module in (table, other):
        module(torch.tensor([1, 1, 3])).square().sum().backward()
    assert not table.weight.grad.is_coalesced()
    sparse, dense = (gradient_sums([m.weight], [m.weight.grad]) for m in (table, other))
    torch.testing.assert_close(sparse, dense)


def test_nothing_waits_for_the_device_and_nothing_is_written():
    # On the meta device every read-back raises: the sums are made without one.
    meta = [torch.empty(5, 4, device="meta"), torch.empty(3, device="meta", dtype=torch.bfloat16)]
    assert update_sums(meta, meta).shape == (2, 3)
    assert gradient_sums(meta, meta).shape == (2, 2)
    mixed = [torch.ones(2), *meta]
    assert update_sums(mixed, mixed).device.type == "meta", "numbers come together on the accelerator"
    w, v, g = (torch.randn(4, requires_grad=True, dtype=torch.float64) for _ in range(3))
    kept = [t.detach().clone() for t in (w, v, g)]
    versions = [t._version for t in (w, v, g)]
    for sums in (update_sums([w], [v]), gradient_sums([w], [g])):
        assert not sums.requires_grad
        assert sums.dtype == torch.float64
    assert [t._version for t in (w, v, g)] == versions
    assert all(torch.equal(a, b) for a, b in zip(kept, (w, v, g), strict=True))
