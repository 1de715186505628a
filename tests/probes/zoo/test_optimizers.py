"""Do no harm: optimizers that a module steps, clears or rewrites by itself are moved by the training alone."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn


def test_two_optimizers_by_hand_are_refused(monitored, zoo, refused):
    """A GAN: alternating updates, `toggle_optimizer`, two states, `global_step` counts both."""

    class Gan(zoo.Base):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.generator = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6))
            self.critic = nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(), nn.Linear(8, 1))

        def training_step(self, batch, batch_idx):
            real, z = batch[0], torch.randn(batch[0].shape[0], 6)
            for optimizer, sign in zip(self.optimizers(), (1, -1), strict=True):
                self.toggle_optimizer(optimizer)
                fake = self.critic(self.generator(z)).mean()
                loss = sign * fake + (0 if sign == 1 else self.critic(real).square().mean())
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
                self.untoggle_optimizer(optimizer)
            self.log("fake", fake)

        def configure_optimizers(self):
            parts = (self.generator, self.critic)
            return [torch.optim.Adam(part.parameters(), lr=1e-2, betas=(0.5, 0.9)) for part in parts]

    refused(monitored(Gan), "by hand", "loss=")


def test_an_auxiliary_optimizer_stepped_in_the_step_is_refused(monitored, zoo, refused):
    """Nothing but the step itself would tell: it moves real weights, in the replay as in the training."""

    class Auxiliary(zoo.Base):
        def __init__(self):
            super().__init__()
            self.centres = nn.Linear(6, 6)
            self.auxiliary = torch.optim.SGD(self.centres.parameters(), lr=0.1, momentum=0.9)

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.auxiliary.zero_grad()
            (self.centres(batch[0]) - batch[0]).square().mean().backward()
            self.auxiliary.step()
            return loss

        def memory(self):
            return self.auxiliary.state_dict()

    refused(monitored(Auxiliary), "steps an optimizer", "loss=")


@pytest.mark.parametrize("how", ["clipped", "cleared", "added"])
def test_parameters_reached_through_the_optimizer(monitored, zoo, how, passed):
    """Weight clipping past autograd's counters, a cleared gradient, a parameter group added in mid-run."""

    class Reaches(zoo.Base):
        def __init__(self):
            super().__init__()
            self.extra = nn.Parameter(torch.zeros(3))

        def loss_of(self, x, y):
            return nn.functional.cross_entropy(self.net(x) + self.extra, y)

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers().optimizer
            if how == "cleared":
                optimizer.zero_grad()
            if how == "added" and self.global_step == 3 and len(optimizer.param_groups) == 1:
                optimizer.add_param_group({"params": [self.extra], "lr": 0.1})
            loss = super().training_step(batch, batch_idx)
            if how == "clipped":
                for group in optimizer.param_groups:
                    for parameter in group["params"]:
                        parameter.data.clamp_(-0.3, 0.3)
            return loss

        def configure_optimizers(self):
            return torch.optim.Adam(self.net.parameters(), lr=1e-2)

    passed(monitored(Reaches))


class Sam(torch.optim.SGD):
    """Two passes an update: up along the gradient, and from there a step at the weights before."""

    def step(self, closure):
        with torch.enable_grad():
            loss = closure()
        with torch.no_grad():
            parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
            kept = [p.clone() for p in parameters]
            norm = torch.stack([p.grad.norm() for p in parameters]).norm()
            for p in parameters:
                p.add_(p.grad, alpha=0.05 / float(norm + 1e-12))
        with torch.enable_grad():
            closure()
        with torch.no_grad():
            for p, before in zip(parameters, kept, strict=True):
                p.copy_(before)
        super().step()
        return loss


@pytest.mark.parametrize("optimizer", ["sam", "lbfgs"])
def test_an_optimizer_that_calls_its_closure_again(monitored, zoo, optimizer, passed):
    class Closure(zoo.Base):
        def configure_optimizers(self):
            if optimizer == "sam":
                return Sam(self.parameters(), lr=0.05)
            return torch.optim.LBFGS(self.parameters(), lr=0.05, max_iter=3)

    run = monitored(Closure)
    passed(run)
    steps = [step for step, _ in run.all("loss")]
    assert steps == sorted(set(steps)), "one row for each update"


def test_sparse_gradients(monitored, zoo):
    class Sparse(zoo.Base):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(3, 6, sparse=True)

        def loss_of(self, x, y):
            return super().loss_of(x + self.table(y), y)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-2)

    run = monitored(Sparse)
    assert [event.severity for event in run.of_kind("self_test")] == ["info"]


def test_layers_that_thaw_in_mid_run(monitored, zoo):
    """`BackboneFinetuning` freezes at the start and adds parameter groups at an epoch."""

    class Thaws(zoo.Base):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))

        def loss_of(self, x, y):
            return super().loss_of(self.backbone(x), y)

        def configure_optimizers(self):
            return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)

    run = monitored(
        Thaws, epochs=3, callbacks=lambda: [pl.callbacks.BackboneFinetuning(1, lambda epoch: 1.0, verbose=False)]
    )
    assert [event.severity for event in run.of_kind("self_test")] == ["info"]
    assert not run.of_kind("probe_failed"), run.of_kind("probe_failed")[0].data["traceback"]
    assert len(run.all("sharpness")) >= 3
