"""An interruption while a measurement begins: what was changed by then is put back."""

import functools
import types

import pytest
import torch

from learnmech.probes.isolation.doors import Doors
from learnmech.probes.isolation.settings import optimizers_at_rest


def test_doors_that_are_half_replaced():
    owner = types.SimpleNamespace(first=len, second=abs)
    interrupted = []

    def places():
        yield owner, "first", functools.partial
        if not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt
        yield owner, "second", functools.partial

    doors = Doors(places)
    with pytest.raises(KeyboardInterrupt), doors.guarded():
        pass
    assert (owner.first, owner.second) == (len, abs)
    with doors.guarded(), doors.guarded():
        assert owner.first is not len
        assert owner.second is not abs
    assert (owner.first, owner.second) == (len, abs), "and the next one is on time"


def test_optimizers_of_which_only_the_first_is_at_rest():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)

    def optimizers():
        yield optimizer
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), optimizers_at_rest(optimizers(), {id(weight): torch.zeros(2)}):
        pass
    assert optimizer.param_groups[0]["params"][0] is weight
    weight.grad = torch.ones(2)
    optimizer.step()
    assert weight.tolist() == pytest.approx([0.9, 0.9])
