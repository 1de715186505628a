"""Sharpness in a plain loop is that of the weights, the batch and the optimizer at its step."""

import pytest
import torch
from torch import nn

from learnmech.probes import HessianSpectrum, Recorder, Sharpness, SharpnessReading, every, is_probing


def test_sharpness_is_the_closed_form_at_its_step(quartic, spool):
    weights = quartic.descend([Sharpness(every(2), tol=1e-3)], spool.url, steps=7)
    run = spool()
    assert list(run.values("sharpness")) == [0, 2, 4, 6]
    for step, m in run.all("sharpness"):
        assert m.value == pytest.approx(float(weights[step].square().max()), rel=1e-6)
        assert m.status == "ok"
        assert 0 <= m.stderr < 1e-3 * m.value
        assert m.cost > 0
    assert run.values("deterministic_loss") == {0: 1.0}
    assert run.all("probe_cost", "sharpness")


def test_preconditioned_sharpness_uses_the_optimizer_at_the_same_step(quartic, spool):
    """P_t of Adam is computed here from the gradients alone: g_t = w^3/3, v_t their exponential average."""
    model = quartic.model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.9, 0.99), eps=1e-8)
    batch, v, expected = torch.zeros(4, 1), torch.zeros(3, dtype=torch.float64), {}
    with Recorder(model, optimizer, quartic.loss, [Sharpness(every(1), tol=1e-6)], sink=spool.url) as recorder:
        for step in range(5):
            if step:
                scale = (1 - 0.9**step) * ((v / (1 - 0.99**step)).sqrt() + 1e-8)
                expected[step] = float((model.w.detach().square() / scale).max())
            optimizer.zero_grad()
            loss = quartic.loss(model, batch)
            loss.backward()
            v = 0.99 * v + 0.01 * (model.w.detach() ** 3 / 3) ** 2
            optimizer.step()
            recorder.after_step(batch, loss)
    (step, first), *rest = spool().all("sharpness_preconditioned")
    assert (step, first.status) == (0, "undetermined")  # Adam has no state yet
    assert {step: m.value for step, m in rest} == pytest.approx(expected, rel=1e-5)


def _quartic_regression(model, batch):
    """L = mean (x'w)^4 / 12: the Hessian X' diag((Xw)^2) X / n depends on the batch and on the weights."""
    return (batch @ model.w).pow(4).mean() / 12


@pytest.mark.parametrize("fixed", [False, True], ids=["batch of the step", "fixed batch"])
def test_the_batch_is_new_to_the_weights_it_is_measured_at(quartic, spool, fixed):
    """The closed form at the weights before the update of each batch; at those after it, it is another number."""
    torch.manual_seed(0)
    model, given = quartic.model(), torch.randn(8, 3).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    before, after = {}, {}

    def sharpness(batch):
        batch = given if fixed else batch
        w = model.w.detach()
        return float(torch.linalg.eigvalsh(batch.T @ ((batch @ w).square()[:, None] * batch) / len(batch))[-1])

    probe = Sharpness(every(1), tol=1e-6, batch=given if fixed else None)
    with Recorder(model, optimizer, _quartic_regression, [probe], sink=spool.url) as recorder:
        for step in range(5):
            batch = torch.randn(4, 3).double()
            optimizer.zero_grad()
            loss = _quartic_regression(model, batch)
            loss.backward()
            before[step] = sharpness(batch)
            optimizer.step()
            after[step + 1] = sharpness(batch)
            assert not probe._held or not fixed
            recorder.after_step(batch, loss)
            assert not probe._held
    assert spool().values("sharpness") == pytest.approx(after if fixed else before, rel=1e-6)
    if not fixed:
        assert before[1] != pytest.approx(after[2], rel=0.02), "nothing to tell apart"


def test_after_running_out_of_memory_the_batch_is_taken_in_parts(mean_square, spool):
    """A loss that only fits two examples while it is probed: the full Hessian is still that of the whole batch."""

    def loss_fn(model, batch):
        if is_probing() and len(batch[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return mean_square(model, batch)

    model = nn.Linear(3, 1, bias=False).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = {}
    with Recorder(model, optimizer, loss_fn, [Sharpness(every(1), tol=1e-6)], sink=spool.url) as recorder:
        for step in range(4):
            x = torch.randn(7, 3, dtype=torch.float64)
            batch = (x, torch.randn(7, 1, dtype=torch.float64))
            optimizer.zero_grad()
            loss_fn(model, batch).backward()
            optimizer.step()
            recorder.after_step(batch)
            expected[step] = float(torch.linalg.eigvalsh(2 * x.T @ x / 7)[-1])
    first, *rest = spool().all("sharpness")
    assert (first[0], first[1].status) == (0, "failed")
    assert [(step, m.method) for step, m in rest] == [(step, "double_backward_in_4_parts") for step in (1, 2, 3)]
    for step, m in rest:
        assert m.value == pytest.approx(expected[step], rel=1e-6)


def test_what_never_fits_is_given_up_and_its_memory_freed(mean_square, spool, monkeypatch, caplog):
    """In 1, 4 and 16 parts, then no more; the allocator's cache is emptied each time, with no tensor of ours alive."""
    tried, freed = [], []

    def loss_fn(model, batch):
        if is_probing():
            tried.append(len(batch[0]))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return mean_square(model, batch)

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(1))
    model = nn.Linear(3, 1, bias=False).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, loss_fn, [Sharpness(every(1))], sink=spool.url) as recorder:
        runner = recorder._engine.runner
        runner._device = torch.device("cuda")  # all that the CPU can show: what would be done there
        for _ in range(8):
            batch = (torch.randn(32, 3, dtype=torch.float64), torch.randn(32, 1, dtype=torch.float64))
            optimizer.zero_grad()
            loss_fn(model, batch).backward()
            optimizer.step()
            recorder.after_step(batch)
    run = spool()
    assert sorted(set(tried), reverse=True) == [32, 8, 2]
    assert len(freed) == 3
    assert [m.status for _, m in run.all("sharpness")] == ["failed"] * 3
    assert len(run.of_kind("probe_disabled")) == 1
    said = [record.message for record in caplog.records if "sharpness" in record.message]
    assert len(said) == 2, "once that it failed, once that it is given up"


def test_usual_settings_keep_one_per_cent_with_few_products(cross_entropy, spool):
    """The oracle is the dense Hessian by `torch.autograd.functional`, at the step of each measurement."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch, truth = (torch.randn(64, 6, dtype=torch.float64), torch.randint(0, 3, (64,))), {}
    with Recorder(model, optimizer, cross_entropy, [Sharpness(every(5))], sink=spool.url) as recorder:
        for step in range(61):
            if step % 5 == 0:
                truth[step] = _dense_top(model, cross_entropy, batch)
            optimizer.zero_grad()
            loss = cross_entropy(model, batch)
            loss.backward()
            optimizer.step()
            recorder.after_step(batch, loss)
    run = spool()
    assert run.values("sharpness") == pytest.approx(truth, rel=0.01)
    assert all(m.stderr > 0.0 for _, m in run.all("sharpness"))
    products = sorted(run.values("sharpness_products").values())
    assert products[len(products) // 2] <= 3


def _dense_top(model, loss_fn, batch):
    parameters = dict(model.named_parameters())
    sizes = [p.numel() for p in parameters.values()]

    def loss(flat):
        parts = zip(parameters, flat.split(sizes), strict=True)
        values = {name: part.view_as(parameters[name]) for name, part in parts}
        return loss_fn(lambda x: torch.func.functional_call(model, values, x), batch)

    flat = torch.cat([p.detach().flatten() for p in parameters.values()])
    return float(torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))[-1])


class NoSecond(torch.autograd.Function):
    """tanh whose backward pass cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):
        y = x.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return g * (1 - y * y)


class Kinked(nn.Module):
    """Without usable second derivative, and with gradients that jump: neither products nor differences work."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Linear(4, 64), nn.Linear(64, 64), nn.Linear(64, 3)

    def forward(self, x):
        hidden = torch.relu(20 * self.one(NoSecond.apply(x)))
        return self.three(torch.relu(self.two(NoSecond.apply(hidden))))


def test_where_no_hessian_product_works_the_gauss_newton_matrix_is_measured_under_its_own_name(cross_entropy, spool):
    torch.manual_seed(0)
    model = Kinked()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    batch = (torch.randn(256, 4), torch.randint(0, 3, (256,)))
    with Recorder(model, optimizer, cross_entropy, [Sharpness(every(1))], sink=spool.url) as recorder:
        for _ in range(6):
            optimizer.zero_grad()
            loss = cross_entropy(model, batch)
            loss.backward()
            optimizer.step()
            recorder.after_step(batch, loss)
    run = spool()
    refused = run.all("sharpness")
    assert len(refused) == 6, "the probe is not given up"
    for _, m in refused:
        assert m.status == "unsupported"
        assert m.value is None
        assert "double backward" in m.reason
    for _, m in run.all("sharpness_gauss_newton"):
        assert m.status == "ok", m.reason
        assert m.value > 0
        assert m.method.startswith("gauss_newton")
    assert len(run.all("sharpness_gauss_newton")) == 6


def test_bad_settings_say_what_is_expected():
    with pytest.raises(ValueError, match=r"tol=0\): expected a relative residual"):
        Sharpness(tol=0)
    with pytest.raises(ValueError, match=r"accuracy=1.5\): expected a relative error"):
        Sharpness(accuracy=1.5)
    with pytest.raises(ValueError, match=r"max_products=0\): expected a whole number of 1 or more"):
        Sharpness(max_products=0)


def test_gauss_newton_has_a_name_of_its_own(mean_square, spool):
    """Of a linear model with squared loss it equals the Hessian; the record says all the same which it is."""
    model = nn.Linear(3, 1, bias=False).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    batch = (torch.randn(7, 3, dtype=torch.float64), torch.randn(7, 1, dtype=torch.float64))
    with Recorder(
        model, optimizer, mean_square, [Sharpness(every(1), method="gauss_newton")], sink=spool.url
    ) as recorder:
        for _ in range(3):
            optimizer.zero_grad()
            mean_square(model, batch).backward()
            optimizer.step()
            recorder.after_step(batch)
    run = spool()
    assert not run.all("sharpness")
    expected = float(torch.linalg.eigvalsh(2 * batch[0].T @ batch[0] / 7)[-1])
    assert list(run.values("sharpness_gauss_newton").values()) == pytest.approx([expected] * 3, rel=0.01)


def test_only_sharpness_takes_gauss_newton():
    with pytest.raises(ValueError, match=r"HessianSpectrum\(method='gauss_newton'\): expected one of 'auto'"):
        HessianSpectrum(method="gauss_newton")


def test_a_reading_needs_its_sharpness(mean_square):
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="follows 'sharpness', which is not among the probes"):
        Recorder(model, optimizer, mean_square, [SharpnessReading(every(1), of=Sharpness())])
