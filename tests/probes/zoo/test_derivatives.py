"""Do no harm where second derivatives fail, are missing, or are wrong: a status with a reason, never a zero."""

import torch
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class Once(Function):
    """x^2, whose derivative autograd does not know again."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 2 * x * grad


class Detached(Function):
    """x^2, with what the derivative needs stashed away from autograd."""

    @staticmethod
    def forward(ctx, x):
        ctx.x = x.detach()
        return x * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * ctx.x * grad


def _squares(zoo, function):
    class Squares(zoo.Base):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([0.5, -1.0]))

        def loss_of(self, x, y):
            return super().loss_of(x, y) + 10 * function.apply(function.apply(self.w)).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-4)

    return Squares


def _honest(run):
    """Curvature of w^4 times 10 is 120 w^2, near 120: given by another method or not at all, never by half."""
    assert [event.severity for event in run.of_kind("self_test")] == ["info"]
    for _, m in run.all("sharpness"):
        if m.status in ("ok", "not_converged"):
            assert m.value > 100, m
            assert m.method != "double_backward", m
        else:
            assert m.reason, m
    assert len(run.all("update_norm")) >= 3


def test_an_operation_that_differentiates_once(monitored, zoo):
    _honest(monitored(_squares(zoo, Once)))


def test_an_operation_with_a_wrong_second_derivative(monitored, zoo):
    _honest(monitored(_squares(zoo, Detached)))


def test_reentrant_checkpointing(monitored, zoo, passed):
    class Reentrant(zoo.Base):
        def loss_of(self, x, y):
            hidden = torch.utils.checkpoint.checkpoint(self.net[:3], x.requires_grad_(), use_reentrant=True)
            return nn.functional.cross_entropy(self.net[3:](hidden), y)

    passed(monitored(Reentrant))


def test_a_loss_without_a_second_derivative(monitored, zoo):
    """CTC raises in the second backward pass."""

    class Ctc(zoo.Base):
        def loss_of(self, x, y):
            logits = self.net(x)[None].repeat(4, 1, 1).log_softmax(-1)
            length = torch.full((len(x),), 4), torch.ones(len(x), dtype=torch.long)
            return nn.functional.ctc_loss(logits, y[:, None].clamp(min=1), *length)

    run = monitored(Ctc)
    assert [event.severity for event in run.of_kind("self_test")] == ["info"]
    assert all(m.method != "double_backward" or m.reason for _, m in run.all("sharpness"))
