"""Python state in places that are easily missed: slots, byte arrays, the order of an OrderedDict."""

import array
import collections

import pytest
import torch
from torch import nn

from learnmech.probes.isolation import FunctionSource, isolated


class Slotted:
    __slots__ = ("count", "later", "total")

    def __init__(self):
        self.count, self.total = 0, torch.zeros(2)

    def step(self):
        self.count += 1
        self.total += 1
        self.later = "set"
        return self.count


class SlottedModule(nn.Linear):
    __slots__ = ("count",)

    def __init__(self):
        super().__init__(2, 1)
        self.count = 0

    def step(self):
        self.count += 1
        return self.count


class Bytes:
    def __init__(self, numbers):
        self.numbers = numbers

    def step(self):
        self.numbers[0] += 1
        return float(self.numbers[0])


class Recent:
    def __init__(self):
        self.order = collections.OrderedDict(a=1, b=2, c=3)

    def step(self):
        self.order.move_to_end("a")
        return 1.0


def content(state):
    return [
        getattr(state, "count", None),
        getattr(state, "total", torch.zeros(0)).tolist(),
        hasattr(state, "later"),
        bytes(getattr(state, "numbers", b"")),
        list(getattr(state, "order", ())),
    ]


@pytest.mark.parametrize(
    "make",
    [Slotted, SlottedModule, lambda: Bytes(bytearray(2)), lambda: Bytes(array.array("d", [0.0])), Recent],
    ids=["slots", "module_with_slots", "bytearray", "array", "ordered"],
)
def test_state_is_put_back_and_every_evaluation_starts_from_it(make):
    model = nn.Linear(2, 1)
    model.state = make()
    model.other = nn.Identity()  # in `_modules`, beside state that is in `__dict__`
    if isinstance(model.state, Recent):
        model.state.order.move_to_end("b")  # an order that the underlying dict does not have
    before = content(model.state)
    source = FunctionSource(model, lambda model, batch: model(batch).mean() * model.state.step())
    first, second = isolated(source, lambda loss: (float(loss(torch.ones(1, 2))), float(loss(torch.ones(1, 2)))))
    assert first == second
    assert content(model.state) == before
