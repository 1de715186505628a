"""Warnings of the user's are shown as often as without a measurement, whichever way Python counts."""

import functools
import re
import threading
import warnings

import pytest
import torch
from torch import nn

from learnmech.probes.isolation import FunctionSource, isolated
from learnmech.probes.isolation.warned import Ignored

warn = functools.partial(warnings.warn, stacklevel=1)


@pytest.fixture(autouse=True)
def shown(monkeypatch):
    """The texts that Python shows, by its own rules."""
    found = []
    with warnings.catch_warnings():
        warnings.resetwarnings()
        warnings.simplefilter("default")
        monkeypatch.setattr(warnings, "showwarning", lambda message, *_, **__: found.append(str(message)))
        yield found


def measured(effect):
    def loss_fn(model, batch):
        effect()
        return model.weight.square().sum()

    isolated(FunctionSource(nn.Linear(2, 2), loss_fn), lambda loss: float(loss(None)))


def test_once_for_each_line_whether_it_is_measured_before_afterwards_or_never(shown):
    def early():
        warn("early")

    def late():
        warn("late")

    measured(early)
    for _ in range(3):
        early()
        late()
        measured(early)
        measured(late)
    assert shown == ["early", "late"]


def test_those_that_torch_raises_in_c(shown):
    def effect():
        torch.nested.nested_tensor([torch.zeros(2)])  # "in prototype stage", once in a process

    before = warnings.filters[:]
    measured(effect)
    assert shown == []
    assert warnings.filters == before


def test_other_threads_are_warned_meanwhile(shown):
    def effect():
        warn("measuring")
        go.set()
        assert done.wait(10)

    go, done = threading.Event(), threading.Event()

    def other():
        go.wait(10)
        warn("another")
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    measured(effect)
    thread.join()
    assert shown == ["another"]


@pytest.mark.parametrize("begins", ["before", "meanwhile"])
def test_a_block_of_the_users_that_overlaps_leaves_nothing_behind(shown, begins):
    """Of another thread's `catch_warnings` only the beginning, or only the end, is in a measurement."""
    before, filters = warnings.filters, warnings.filters[:]
    block = warnings.catch_warnings()
    if begins == "before":
        block.__enter__()
        warnings.simplefilter("ignore")
        measured(lambda: block.__exit__(None, None, None))
    else:
        measured(block.__enter__)
        block.__exit__(None, None, None)
    assert warnings.filters is before
    assert warnings.filters == filters


def test_only_what_is_meant_and_only_for_a_while(shown):
    ignored = Ignored(re.compile("of no use"))
    warn("of no use")
    warn("of use")
    ignored.remove()
    ignored.remove()
    warn("of no use, but afterwards")
    assert shown == ["of use", "of no use, but afterwards"]
