"""Under Lightning the loss change is that of the replayed training step, at the weights of the same update."""

import pytest
import torch

from learnmech.probes import every
from learnmech.probes.batch_sharpness import BatchSharpness
from learnmech.probes.critical_sharpness import CriticalSharpness
from learnmech.probes.hessian_eigenvalues import HessianEigenvalues
from learnmech.probes.lightning import MechanicsMonitor
from learnmech.probes.loss_change import LossChange


def probes():
    return [
        LossChange(every(1)),
        CriticalSharpness(every(1)),
        BatchSharpness(every(1)),
        HessianEigenvalues(every(1), k=2, smallest=1),
    ]


def quartic_at(module, step):
    """Return w, s and the mean of the batch of an update: what L = mean * sum w^4 / 12 needs."""
    of = {at: (w.double(), mean) for at, w, mean in module.weights}
    w, mean = of[step]
    after = of[step + 1][0] if step + 1 in of else module.w.detach().double()
    return w, after - w, mean


def test_every_number_is_its_closed_form(quartic, trainer_of, fit, spool):
    module = quartic(lr=0.2)
    fit(trainer_of(callbacks=[MechanicsMonitor(probes=probes(), sink=spool.url, strict=True)]), module)
    run = spool()
    steps = list(run.values("loss_change"))
    assert steps[-1] == 7  # two epochs of four batches
    assert len(steps) >= 6  # the first ones wait for the self-test
    for step in steps:
        w, s, mean = quartic_at(module, step)
        linear, curvature = mean * float((w**3 / 3 * s).sum()), mean * float((w**2 * s**2).sum())
        change = mean * float(((w + s) ** 4 - w**4).sum()) / 12
        assert run.values("loss_change")[step] == pytest.approx(change, abs=1e-6)
        assert run.values("loss_change_linear")[step] == pytest.approx(linear, rel=1e-5)
        assert run.values("loss_change_predicted")[step] == pytest.approx(linear + curvature / 2, rel=1e-5)
        assert run.values("update_sharpness")[step] == pytest.approx(curvature / float(s @ s), rel=1e-5)
        g = mean * w**3 / 3
        assert run.values("batch_grad_sq_norm")[step] == pytest.approx(float(g @ g), rel=1e-5)
        assert run.values("batch_curvature")[step] == pytest.approx(mean * float((w**2 * g**2).sum()), rel=1e-5)
        largest = sorted((mean * w**2).tolist())
        assert run.values("hessian_eigenvalue", "1")[step] == pytest.approx(largest[-1], rel=1e-4)
        assert run.values("hessian_eigenvalue_smallest", "1")[step] == pytest.approx(largest[0], rel=1e-3)
        (critical,) = [m for at, m in run.all("critical_step") if at == step]

        def rise(c, w=w, s=s):
            return float(((w + c * s) ** 4 - w**4).sum())

        assert rise(critical.value - critical.stderr) < 1e-5
        assert rise(critical.value + critical.stderr) > -1e-5
    assert not run.of_kind("probe_failed")


def test_accumulated_updates_say_what_part_they_are_of(quartic, data, trainer_of, fit, spool):
    monitor = MechanicsMonitor(probes=[LossChange(every(1))], sink=spool.url, strict=True)
    fit(trainer_of(callbacks=[monitor], accumulate_grad_batches=2), quartic(), data())
    found = spool().all("loss_change_predicted")
    assert found
    assert {m.method for _, m in found} == {"double_backward_on_3_of_6_examples"}


def test_training_is_bit_identical(quartic, trainer_of, fit, digest, spool):
    def trained(callbacks):
        torch.manual_seed(0)
        module = fit(trainer_of(callbacks=callbacks), quartic(lr=0.1, optimizer="AdamW"))
        return digest([module.state_dict(), module.weights, module.trainer.optimizers[0].state_dict()])

    assert trained([MechanicsMonitor(probes=probes(), sink=spool.url)]) == trained([])
    assert spool().values("loss_change")
