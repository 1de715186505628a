"""The spectrum probe in a plain loop: the numbers of the weights at its step, and a training that does not notice."""

import math

import pytest
import torch
from torch import nn

from learnmech.probes import Recorder, every, is_probing
from learnmech.probes.hessian_spectrum import PROBABILITIES, HessianSpectrum


def test_records_the_closed_form_at_its_step(quartic, spool):
    """H = diag(w^2) with three weights: the products fill the space, so every number is exact."""
    weights = quartic.descend([HessianSpectrum(every(2))], spool.url, steps=5)
    run = spool()
    assert list(run.values("hessian_trace")) == [0, 2, 4]
    for step in (0, 2, 4):
        squares = weights[step].square().sort().values
        assert run.values("hessian_trace")[step] == pytest.approx(float(squares.sum()), rel=1e-9)
        assert run.values("hessian_frobenius")[step] == pytest.approx(float(squares.norm()), rel=1e-9)
        expected = {"0.001": 0, "0.05": 0, "0.25": 0, "0.5": 1, "0.75": 2, "0.999": 2}
        for scope, index in expected.items():
            assert run.values("hessian_quantile", scope)[step] == pytest.approx(float(squares[index]), rel=1e-9)
    measured = dict(run.all("hessian_trace"))[2]
    assert (measured.status, measured.method) == ("ok", "double_backward_hutch++_2x10+12")
    assert 0 <= measured.stderr < 1e-9
    assert measured.cost > 0
    assert dict(run.all("hessian_quantile", "0.5"))[2].method == "double_backward_lanczos_2x10"
    assert run.all("probe_cost", "hessian_spectrum")
    assert len(PROBABILITIES) == 9


@pytest.fixture
def trained(mean_square, digest, training_state):
    """Train a network with batch norm and dropout, with or without a probe; hash everything after every step."""

    def run(probes=None, url="", steps=4):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 2))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        recorder = None if probes is None else Recorder(model, optimizer, mean_square, probes, sink=url).__enter__()
        seen = []
        for _ in range(steps):
            batch = (torch.randn(12, 6), torch.randn(12, 2))
            optimizer.zero_grad()
            loss = mean_square(model, batch)
            loss.backward()
            optimizer.step()
            if recorder is not None:
                recorder.after_step(batch, loss)
            seen.append(digest([training_state(model, [optimizer]), batch, loss]))
        if recorder is not None:
            recorder.close()
        return seen

    return run


def test_training_is_bit_identical(trained, spool):
    plain = trained()
    watched = trained([HessianSpectrum(every(1), vectors=2, steps=4, samples=3)], spool.url)
    assert plain == watched
    run = spool()
    assert len(run.all("hessian_trace")) == len(run.all("hessian_quantile", "0.25")) == 4
    for _, m in run.all("hessian_trace") + run.all("hessian_frobenius"):
        assert m.status == "ok"
        assert m.stderr > 0


def test_vectors_are_others_at_each_step_and_for_each_probe(trained, spool):
    """At a learning rate of zero, only the vectors change; the same run gives the same numbers again."""
    probes = [
        HessianSpectrum(every(1), vectors=1, steps=2, samples=2),
        HessianSpectrum(every(1), vectors=1, steps=2, samples=2, name="two"),
    ]
    model = nn.Linear(40, 1, bias=False)
    x = torch.randn(64, 40, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with Recorder(model, optimizer, lambda m, b: m(b).square().mean(), probes, sink=spool.url) as recorder:
        for _ in range(2):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            recorder.after_step(x)
    found = [m.value for _, m in spool().all("hessian_trace")]
    assert len(set(found)) == 4


def test_a_loss_that_is_nan_is_data(quartic, spool):
    def broken(model, batch):
        return quartic.loss(model, batch) * (math.nan if is_probing() else 1.0)

    model = quartic.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with Recorder(model, optimizer, broken, [HessianSpectrum(every(1))], sink=spool.url) as recorder:
        for _ in range(2):
            optimizer.zero_grad()
            broken(model, torch.zeros(4, 1)).backward()
            optimizer.step()
            recorder.after_step(torch.zeros(4, 1))
    run = spool()
    places = [("hessian_trace", ""), ("hessian_frobenius", ""), *(("hessian_quantile", p) for p in PROBABILITIES)]
    for observable, scope in places:  # where the numbers would have gone
        assert [m.status for _, m in run.all(observable, scope)] == ["non_finite", "non_finite"]
        assert "nan" in run.all(observable, scope)[0][1].reason
    assert not run.all("hessian_quantile", "")
    assert not run.of_kind("probe_disabled")


def test_after_running_out_of_memory_the_batch_is_taken_in_parts(mean_square, spool):
    """A loss that only fits two examples while it is probed: the statistics are still those of the whole batch."""

    def loss_fn(model, batch):
        if is_probing() and len(batch[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return mean_square(model, batch)

    model = nn.Linear(3, 1, bias=False).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(7, 3, dtype=torch.float64), torch.randn(7, 1, dtype=torch.float64)
    with Recorder(model, optimizer, loss_fn, [HessianSpectrum(every(1))], sink=spool.url) as recorder:
        for _ in range(2):
            optimizer.zero_grad()
            loss_fn(model, (x, y)).backward()
            optimizer.step()
            recorder.after_step((x, y))
    (_, first), (_, second) = spool().all("hessian_trace")
    assert first.status == "failed"
    assert second.value == pytest.approx(float(2 * x.square().sum() / 7), rel=1e-9)
    assert second.method == "double_backward_in_4_parts_hutch++_2x10+12"


@pytest.mark.parametrize(
    ("settings", "said"), [({"vectors": 0}, "vectors=0"), ({"steps": 1}, "steps=1"), ({"samples": 1}, "samples=1")]
)
def test_bad_arguments_are_told_at_once(settings, said):
    with pytest.raises(ValueError, match=said):
        HessianSpectrum(every(5), **settings)
