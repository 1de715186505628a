"""Both ends of the spectrum and the gradient's alignment are those of dense matrices, before the update."""

import math

import pytest
import torch
from torch import nn

from learnmech.probes import Recorder, every, is_probing
from learnmech.probes.hessian_eigenvalues import HessianEigenvalues


class Saddle(nn.Module):
    """L(w) = w'Aw / 2 with a given spectrum."""

    def __init__(self, values):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        n = len(values)
        self.basis = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
        self.matrix = self.basis @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ self.basis.T
        self.w = nn.Parameter(torch.randn(n, generator=generator, dtype=torch.float64))

    def forward(self, x):
        return self.w @ self.matrix @ self.w / 2 + 0 * x.sum()


def loss_of(model, batch):
    return model(batch)


def descend(url, probe, model, steps=3, lr=0.01):
    """Descend; return the weights before each update."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    weights, batch = [], torch.zeros(4, 1)
    with Recorder(model, optimizer, loss_of, [probe], sink=url) as recorder:
        for _ in range(steps):
            weights.append(model.w.detach().clone())
            optimizer.zero_grad()
            model(batch).backward()
            optimizer.step()
            recorder.after_step(batch)
    return weights


VALUES = [9.0, 7.0, 4.0, 1.0, 0.5, 0.2, 0.1, -0.3, -1.0, -3.0]


def test_both_ends_and_the_alignment_are_those_of_the_matrix(spool):
    model = Saddle(VALUES)
    weights = descend(spool.url, HessianEigenvalues(every(1), k=3, smallest=2, tol=1e-6), model)
    run = spool()
    for step, w in enumerate(weights):
        for scope, expected in zip("123", (9.0, 7.0, 4.0), strict=True):
            assert run.values("hessian_eigenvalue", scope)[step] == pytest.approx(expected, rel=1e-8)
        for scope, expected in zip("12", (-3.0, -1.0), strict=True):
            assert run.values("hessian_eigenvalue_smallest", scope)[step] == pytest.approx(expected, rel=1e-8)
        g = model.matrix @ w
        expected = float((model.basis[:, :3].T @ g).square().sum() / g.square().sum())
        ((_, found),) = [entry for entry in run.all("gradient_alignment", "top_3") if entry[0] == step]
        assert found.value == pytest.approx(expected, rel=1e-5)
        assert abs(found.value - expected) <= found.stderr + 1e-12
        assert found.status == "ok"
        assert found.stderr < 1e-3
    assert {m.status for _, m in run.all("hessian_eigenvalue", "1")} == {"ok"}


def test_with_few_products_the_error_of_the_alignment_holds(spool):
    """At a coarse tolerance the Ritz vectors are visibly off; the stated error must cover that."""
    model = Saddle(VALUES)
    weights = descend(spool.url, HessianEigenvalues(every(1), k=2, smallest=0, tol=0.1), model, steps=12, lr=0.05)
    run = spool()
    for step, w in enumerate(weights):
        g = model.matrix @ w
        expected = float((model.basis[:, :2].T @ g).square().sum() / g.square().sum())
        ((_, found),) = [entry for entry in run.all("gradient_alignment", "top_2") if entry[0] == step]
        if found.stderr is not None:
            assert abs(found.value - expected) <= found.stderr + 1e-9
    assert not run.all("hessian_eigenvalue_smallest", "1")


def test_without_a_gap_there_is_no_subspace_to_speak_of(spool):
    model = Saddle([5.0, 2.0, 2.0, 2.0, 1.0, 0.0, -1.0, -1.0])
    descend(spool.url, HessianEigenvalues(every(1), k=2, smallest=1), model, steps=1)
    ((_, found),) = spool().all("gradient_alignment", "top_2")
    assert found.status == "undetermined"
    assert found.reason


def test_it_is_that_of_the_batch_before_its_update(cross_entropy, spool):
    """Against the dense Hessian by autograd's own `hessian`, on batches that differ from step to step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    names = [name for name, _ in model.named_parameters()]
    expected = []
    probe = HessianEigenvalues(every(1), k=3, tol=1e-5)
    with Recorder(model, optimizer, cross_entropy, [probe], sink=spool.url) as recorder:
        for _ in range(4):
            batch = (torch.randn(6, 4).double(), torch.randint(0, 3, (6,)))
            w = torch.cat([p.detach().flatten() for p in model.parameters()])

            def loss(flat, batch=batch):
                parts = torch.split(flat, [p.numel() for p in model.parameters()])
                shaped = {n: part.view_as(p) for n, part, p in zip(names, parts, model.parameters(), strict=True)}
                return nn.functional.cross_entropy(torch.func.functional_call(model, shaped, (batch[0],)), batch[1])

            values, vectors = torch.linalg.eigh(torch.autograd.functional.hessian(loss, w))
            leaf = w.clone().requires_grad_()
            (g,) = torch.autograd.grad(loss(leaf), leaf)
            expected.append((values, float((vectors[:, -3:].T @ g).square().sum() / g.square().sum())))
            optimizer.zero_grad()
            cross_entropy(model, batch).backward()
            optimizer.step()
            recorder.after_step(batch)
    run = spool()
    for step, (values, share) in enumerate(expected):
        for rank in (1, 2, 3):
            assert run.values("hessian_eigenvalue", str(rank))[step] == pytest.approx(float(values[-rank]), rel=1e-6)
        assert run.values("hessian_eigenvalue_smallest", "1")[step] == pytest.approx(float(values[0]), rel=1e-6)
        assert run.values("gradient_alignment", "top_3")[step] == pytest.approx(share, rel=1e-3)


def test_more_eigenvalues_than_dimensions_are_all_of_them(spool):
    descend(spool.url, HessianEigenvalues(every(1), k=5, smallest=5), Saddle([2.0, 1.0, -1.0]), steps=2)
    run = spool()
    assert [run.values("hessian_eigenvalue", str(rank))[0] for rank in (1, 2, 3)] == pytest.approx([2.0, 1.0, -1.0])
    assert run.values("gradient_alignment", "top_3")[0] == pytest.approx(1.0)
    assert not run.all("hessian_eigenvalue", "4")


def test_what_ran_out_of_products_is_not_blamed_on_what_converged(spool):
    """One eigenvalue far above a crowd: five products find it, not the second."""
    values = [100.0, *[1.0 - 0.001 * i for i in range(60)]]
    descend(spool.url, HessianEigenvalues(every(1), k=2, smallest=0, tol=1e-4, max_products=8), Saddle(values), steps=1)
    run = spool()
    ((_, first),), ((_, second),) = run.all("hessian_eigenvalue", "1"), run.all("hessian_eigenvalue", "2")
    assert first.status == "ok"
    assert first.value == pytest.approx(100.0, rel=1e-6)
    assert second.status == "not_converged"
    assert math.isfinite(second.stderr)


@pytest.mark.parametrize("settings", [{"k": 0}, {"smallest": -1}, {"tol": 0.0}, {"max_products": 4}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match="expected"):
        HessianEigenvalues(**settings)


def test_a_loss_that_is_nan_has_a_row_wherever_a_number_would_have_gone(spool):
    def broken(model, batch):
        return model(batch) * (math.nan if is_probing() else 1.0)

    model = Saddle(VALUES)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Recorder(
        model, optimizer, broken, [HessianEigenvalues(every(1), k=3, smallest=2)], sink=spool.url
    ) as recorder:
        batch = torch.zeros(4, 1)
        optimizer.zero_grad()
        broken(model, batch).backward()
        optimizer.step()
        recorder.after_step(batch)
    run = spool()
    places = [("hessian_eigenvalue", rank) for rank in "123"] + [("hessian_eigenvalue_smallest", rank) for rank in "12"]
    for observable, scope in [*places, ("gradient_alignment", "top_3")]:
        ((_, m),) = run.all(observable, scope)
        assert (m.value, m.status) == (None, "non_finite")
        assert "nan" in m.reason
    for observable in HessianEigenvalues.observables:
        assert not run.all(observable, "")
