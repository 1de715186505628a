"""What counts as one step, and that loss, gradient and hyperparameters are those of its update."""

import math

import pytest
import torch
from torch import nn

from learnmech.probes import Recorder, Vitals, WeightDynamics, every


@pytest.mark.parametrize("after_backward", [True, False])
def test_hyperparameters_are_those_of_the_update(after_backward, quartic, spool):
    """The scheduler steps before `after_step`: the group already holds the next learning rate then."""
    quartic.descend(
        [Vitals(every(1))],
        spool.url,
        steps=6,
        lr=0.1,
        after_backward=after_backward,
        scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 3, 0.5),
    )
    run = spool()
    assert run.values("learning_rate") == {0: 0.1, 3: 0.05}
    assert run.values("momentum") == {0: 0.0}
    assert run.values("decoupled_weight_decay") == {0: 0.0}
    assert run.context["optimizer"] == "SGD"


def test_loss_and_gradient_norm_are_those_of_the_update(quartic, spool):
    weights = quartic.descend([Vitals(every(1))], spool.url, steps=4)
    run = spool()
    for step in range(4):
        assert run.values("loss")[step] == pytest.approx(float(weights[step].pow(4).sum() / 12))
        assert run.values("grad_norm")[step] == pytest.approx(float((weights[step] ** 3 / 3).norm()))
    assert run.all("grad_norm")[0][1].method == ""


def test_without_after_backward_the_gradient_is_seen_at_the_step(quartic, spool):
    weights = quartic.descend([Vitals(every(1))], spool.url, steps=3, after_backward=False)
    run = spool()
    assert run.values("grad_norm")[2] == pytest.approx(float((weights[2] ** 3 / 3).norm()))
    assert {m.method for _, m in run.all("grad_norm")} == {"at_step"}


def test_gradient_is_seen_before_clipping(quartic, spool):
    model = quartic.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, quartic.loss, [Vitals(every(1))], sink=spool.url) as recorder:
        loss = quartic.loss(model, torch.zeros(1))
        loss.backward()
        recorder.after_backward(torch.zeros(1))
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()
        recorder.after_step(torch.zeros(1), loss)
    assert spool().values("grad_norm")[0] == pytest.approx(float((quartic.model().w.detach() ** 3 / 3).norm()))


def test_accumulated_micro_batches_make_one_step(mean_square, spool):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = [(torch.randn(size, 2), torch.randn(size, 1)) for size in (8, 8, 3, 5, 5, 5)]
    probes = [Vitals(every(1)), WeightDynamics(every(1))]
    norms = []
    with Recorder(model, optimizer, mean_square, probes, sink=spool.url) as recorder:
        for window in (data[:3], data[3:]):
            optimizer.zero_grad()
            for batch in window:
                (mean_square(model, batch) / 3).backward()
                recorder.after_backward(batch)
            norms.append(math.hypot(*(float(p.grad.norm()) for p in model.parameters())))
            optimizer.step()
            recorder.after_step(window[-1])
    run = spool()
    assert run.values("batch_size") == {0: 19.0, 1: 15.0}
    assert run.values("accumulation") == {0: 3.0}
    assert run.values("full_batch") == {0: 0.0}
    assert list(run.values("grad_norm").values()) == pytest.approx(norms)
    assert [step for step, _ in run.all("update_norm")] == [0, 1]
    assert run.frames[-1].samples == 34


def test_an_optimizer_with_a_closure_counts_as_one_step(quartic, spool):
    model = quartic.model()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    batch = torch.zeros(1)

    def closure():
        optimizer.zero_grad()
        loss = quartic.loss(model, batch)
        loss.backward()
        return loss

    with Recorder(
        model, optimizer, quartic.loss, [Vitals(every(1)), WeightDynamics(every(1))], sink=spool.url
    ) as recorder:
        for _ in range(3):
            recorder.after_step(batch, optimizer.step(closure))
    run = spool()
    assert [step for step, _ in run.all("loss")] == [0, 1, 2]
    assert [step for step, _ in run.all("update_norm")] == [0, 1, 2]
    assert not run.all("grad_norm"), "the gradient at the beginning of the step is not that of the step"


def test_an_optimizer_without_hooks_is_measured_all_the_same(quartic, spool):
    class Plain:
        """Duck-typed: has groups and state, knows no hooks."""

        def __init__(self, parameters):
            self.param_groups, self.state = [{"params": list(parameters), "lr": 0.1}], {}

        def step(self):
            for p in self.param_groups[0]["params"]:
                p.data.add_(p.grad, alpha=-0.1)

    model = quartic.model()
    optimizer = Plain(model.parameters())
    with Recorder(
        model, optimizer, quartic.loss, [Vitals(every(1)), WeightDynamics(every(1))], sink=spool.url
    ) as recorder:
        for _ in range(3):
            model.zero_grad()
            loss = quartic.loss(model, torch.zeros(1))
            loss.backward()
            optimizer.step()
            recorder.after_step(torch.zeros(1), loss)
    run = spool()
    assert [step for step, _ in run.all("update_norm")] == [0, 1, 2]
    assert run.values("learning_rate") == {0: 0.1}
    assert {m.method for _, m in run.all("grad_norm")} == {"at_step"}
