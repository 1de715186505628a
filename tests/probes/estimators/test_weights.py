"""Norms, updates and angles against float64 arithmetic on whole vectors."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from learnmech.probes.estimators import angle, measure_motion, motion_sums


def true_angle(w, v):
    """2 atan2(|u - v|, |u + v|) of unit vectors in float64 (Kahan): from the vectors, not from norms."""
    u, v = w.double().flatten(), v.double().flatten()
    u, v = u / u.norm(), v / v.norm()
    return 2 * math.atan2((u - v).norm().item(), (u + v).norm().item())


@pytest.mark.parametrize("radians", [1e-6, 1e-5, 1e-4, 1e-3, 0.1, 1.0, 2.0, 3.1, math.pi])
@pytest.mark.parametrize("stretch", [1.0, 1.001, 0.5, 30.0])
def test_angles_in_float32(radians, stretch):
    generator = torch.Generator().manual_seed(0)
    w, other = torch.randn(2, 200, 50, generator=generator, dtype=torch.float64)
    across = other - (other * w).sum() / w.square().sum() * w
    across *= w.norm() / across.norm()
    moved = stretch * (math.cos(radians) * w + math.sin(radians) * across)
    w, moved = w.float(), moved.float()
    (motion,), whole = measure_motion([w], [moved])
    truth = true_angle(w, moved)
    assert motion.angular_update == pytest.approx(truth, abs=1e-6)
    assert motion.angular_update == pytest.approx(truth, rel=1e-4 if stretch <= 1.001 else 0.1)
    assert motion.angular_update == pytest.approx(radians, abs=1e-5)
    assert whole == motion
    if radians <= 1e-4:  # what is usually done reads zero, or nothing but rounding
        naive = torch.acos((w * moved).sum() / (w.norm() * moved.norm())).item()
        assert not abs(naive - truth) < 0.1 * truth


def test_angle_of_triangles():
    assert angle(3.0, 4.0, 5.0) == pytest.approx(math.pi / 2)
    assert angle(1.0, 1.0, 1.0) == pytest.approx(math.pi / 3)
    assert angle(1.0, 3.0, 2.0) == 0.0  # stretched only
    assert angle(1.0, 3.0, 4.0) == pytest.approx(math.pi)
    assert angle(1.0, 1.0, 2e-9) == pytest.approx(2e-9, rel=1e-9)
    assert angle(1.0, 3.0, 2.0 * (1 - 1e-16)) == 0.0  # no triangle, by rounding
    for sides in ((0.0, 1.0, 1.0), (1.0, 0.0, 1.0), (math.nan, 1.0, 1.0)):
        assert math.isnan(angle(*sides))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_all_numbers_match_float64(dtype):
    generator = torch.Generator().manual_seed(1)
    shapes = [(30, 20), (7,), (), (2, 3, 4, 5), (40, 1)]
    before = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    before[0] = before[0].T  # not contiguous
    after = [w + (0.01 * torch.randn(w.shape, generator=generator)).to(dtype) for w in before]
    gradients = [torch.randn(w.shape, generator=generator).to(dtype) for w in before]
    gradients[1] = None
    each, whole = measure_motion(before, after, gradients)

    def expected(w, v, g):
        w, v, g = w.double(), v.double(), g.double()
        return {
            "weight_norm": w.norm().item(),
            "update_norm": (v - w).norm().item(),
            "relative_update": ((v - w).norm() / w.norm()).item(),
            "angular_update": true_angle(w, v),
            "scale_invariance": ((w * g).sum().abs() / (w.norm() * g.norm())).item() if g.norm() else math.nan,
        }

    zeros = [torch.zeros_like(w) if g is None else g for w, g in zip(before, gradients, strict=True)]
    for motion, *tensors in zip(each, before, after, zeros, strict=True):
        for name, value in expected(*tensors).items():
            assert getattr(motion, name) == pytest.approx(value, rel=2e-6, abs=1e-9, nan_ok=True), name
    joined = [torch.cat([t.flatten() for t in tensors]) for tensors in (before, after, zeros)]
    for name, value in expected(*joined).items():
        assert getattr(whole, name) == pytest.approx(value, rel=2e-6, abs=1e-9), name


def test_what_is_not_known_is_nan():
    (motion,), _ = measure_motion([torch.ones(3)])
    assert motion.weight_norm == pytest.approx(math.sqrt(3))
    for name in ("update_norm", "relative_update", "angular_update", "scale_invariance"):
        assert math.isnan(getattr(motion, name))
    (dead,), _ = measure_motion([torch.zeros(3)], [torch.ones(3)], [torch.zeros(3)])
    assert dead.update_norm == pytest.approx(math.sqrt(3))
    assert math.isnan(dead.relative_update)
    assert math.isnan(dead.angular_update)
    assert math.isnan(dead.scale_invariance)
    (broken,), _ = measure_motion([torch.tensor([1.0, math.nan])], [torch.ones(2)])
    assert math.isnan(broken.weight_norm)
    with pytest.raises(ValueError, match="expected as many"):
        measure_motion([torch.ones(3)], [])
    with pytest.raises(ValueError, match="no tensors came"):
        measure_motion([])


def test_scale_invariance_is_seen_and_its_absence_too():
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8, eps=1e-12), nn.GELU(), nn.Linear(8, 3))
    x, y = torch.randn(64, 6), torch.randint(0, 3, (64,))
    cross_entropy(model(x), y).backward()
    before_norm, last = model[0].weight, model[3].weight
    (invariant, ordinary), _ = measure_motion([before_norm, last], gradients=[before_norm.grad, last.grad])
    assert invariant.scale_invariance < 1e-6
    assert ordinary.scale_invariance > 1e-2


def test_nothing_waits_for_the_device_and_nothing_is_written():
    # On the meta device every read-back raises: the sums are made without one.
    meta = [torch.empty(5, 4, device="meta"), torch.empty(3, device="meta", dtype=torch.bfloat16)]
    assert motion_sums(meta, meta, [meta[0], None]).shape == (2, 5)
    w, v, g = (torch.randn(4, requires_grad=True, dtype=torch.float64) for _ in range(3))
    versions = [t._version for t in (w, v, g)]
    sums = motion_sums([w], [v], [g])
    assert not sums.requires_grad
    assert sums.dtype == torch.float64
    assert [t._version for t in (w, v, g)] == versions
