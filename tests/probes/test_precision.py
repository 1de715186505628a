"""Half precision in a training step is found out, by whatever trains: small numbers mean less there."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from learnmech.probes import Recorder, every
from learnmech.probes.precision import computed_in_half
from learnmech.probes.probe import BaseProbe, Moment


class Asking(BaseProbe):
    """Notes what it is told of the precision."""

    default_name, moment = "asking", Moment.UPDATE

    def __init__(self):
        super().__init__(every(1))
        self.told = []

    def prepare(self, view):
        pass

    def measure(self, view):
        self.told.append(view.precise)
        return []


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.unused = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(2, 2)

    def forward(self, x):
        return self.b(checkpoint(lambda h: self.a(h).relu(), x, use_reentrant=False))


def single(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def autocast(model, batch):
    with torch.autocast("cpu", torch.bfloat16):
        return nn.functional.cross_entropy(model(batch[0]).float(), batch[1])


def trained(loss_fn, model=None, passes=lambda loss: loss, **settings):
    torch.manual_seed(0)
    model, asking = model or Net(), Asking()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dtype = next(model.parameters()).dtype
    with Recorder(model, optimizer, loss_fn, [asking], strict=True, **settings) as recorder:
        for _ in range(3):
            batch = (torch.randn(6, 4, dtype=dtype), torch.randint(3, (6,)))
            optimizer.zero_grad()
            loss = loss_fn(model, batch)
            loss.backward()
            optimizer.step()
            recorder.after_step(batch, passes(loss))
    return asking.told


def test_autocast_is_seen_in_the_first_loss(spool):
    assert trained(single, sink=spool.url) == [True] * 3
    assert trained(autocast, sink=spool.url) == [False] * 3
    assert trained(single, Net().bfloat16(), sink=spool.url) == [False] * 3


@pytest.mark.parametrize("passes", [torch.Tensor.detach, torch.Tensor.item, lambda loss: None])
def test_where_it_cannot_be_seen_it_is_declared(passes, spool):
    assert trained(autocast, passes=passes, sink=spool.url) == [True] * 3
    assert trained(autocast, passes=passes, sink=spool.url, precise=False) == [False] * 3
    assert trained(autocast, sink=spool.url, precise=True) == [True] * 3


@pytest.mark.parametrize("passes", [torch.Tensor.detach, torch.Tensor.item, lambda loss: None])
def test_weights_in_half_precision_say_it(passes, spool):
    assert trained(single, Net().bfloat16(), passes, sink=spool.url) == [False] * 3


class Odd(torch.Tensor):
    """Does not let itself be looked at."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is torch.Tensor.dtype.__get__:
            raise RuntimeError("odd")
        return super().__torch_function__(function, types, args, kwargs)


def test_a_loss_that_cannot_be_looked_at_harms_nobody(spool):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, optimizer, single, [Asking()], sink=spool.url) as recorder:
        for _ in range(3):
            batch = (torch.randn(6, 4), torch.randint(3, (6,)))
            loss = single(model, batch)
            loss.backward()
            optimizer.step()
            recorder.after_step(batch, loss.as_subclass(Odd))
    assert recorder.step == 3


def test_a_scaler_in_use_says_it(spool):
    for enabled in (True, False):
        scaler = torch.amp.GradScaler("cpu", enabled=enabled)
        assert trained(single, passes=lambda loss: None, sink=spool.url, scaler=scaler) == [not enabled] * 3


def test_a_graph_without_end_is_looked_at_in_part():
    x = torch.ones(1, requires_grad=True)
    y = x.bfloat16().float()
    for _ in range(50_000):
        y = y + 1
    assert not computed_in_half(y)
    assert not computed_in_half(torch.ones(1))
    assert computed_in_half(x.bfloat16().float() + 1)
