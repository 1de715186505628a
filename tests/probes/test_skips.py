"""A probe that finds nothing to measure has been used: left to the budget, it does not try again at every step."""

import contextlib
import time
import types

import pytest
import torch

from learnmech.probes import BaseProbe, Moment
from learnmech.probes.budget import Governor
from learnmech.probes.isolation import Skip
from learnmech.probes.runner import Runner
from learnmech.probes.writer import Nowhere, Writer

STEPS = 50


class Skips(BaseProbe):
    """Takes 2 ms to find out that there is nothing: the share of 1 % in steps of a millisecond is one of 200."""

    default_name, watches = "skips", True

    def __init__(self, moment, collective=False):
        super().__init__()
        self.moment, self.collective, self.tried = moment, collective, 0

    def measure(self, view):
        self.tried += 1
        time.sleep(0.002)
        raise Skip("a batch too small")

    arm = measure


class Peers:
    """The first of two processes, the other of which does the same."""

    size = 2

    @contextlib.contextmanager
    def together(self):
        yield

    def first(self, value):
        return value


@pytest.mark.parametrize(("moment", "peers"), [("at_rest", None), ("at_rest", Peers()), ("update", None)])
def test_it_is_tried_as_often_as_the_budget_allows(moment, peers):
    probe = Skips(Moment(moment), collective=peers is not None)
    runner = Runner(
        [probe],
        Writer(Nowhere()),
        Governor(0.01),
        start_step=0,
        device=torch.device("cpu"),
        foresees=True,
        strict=False,
    )
    runner.agenda.peers = peers
    for step in range(1, STEPS):
        time.sleep(0.001)
        for due in runner.agenda.due(probe.moment, step):
            (runner.measure if moment == "at_rest" else runner.arm)(due, types.SimpleNamespace(step=step))
        runner.agenda.stepped()
    assert 1 <= probe.tried <= 3
    assert not runner.health.off
