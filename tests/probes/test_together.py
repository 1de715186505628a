"""What processes measure together, seen from one of them, without the others."""

import contextlib
import types

import pytest
import torch

from learnmech.probes import BaseProbe, at, every, log_spaced, on_demand
from learnmech.probes.engine import Engine
from learnmech.probes.schedule import Schedule
from learnmech.probes.writer import Nowhere, Writer


class Kept(Nowhere):
    def __init__(self):
        self.rows = []

    def put(self, step, measurements=(), events=(), **_):
        self.rows += [(step, m.observable, m.status, m.reason) for m in measurements]


class Peers:
    """Two processes, of which the other does the same."""

    rank, size = 0, 2

    @contextlib.contextmanager
    def together(self):
        yield

    def first(self, value):
        return value


class Shared(BaseProbe):
    collective, observables = True, ("sharpness",)

    def measure(self, view):
        return []


class Own(Schedule):
    def latest(self, step):
        return step

    def __repr__(self):
        return "own"


@pytest.fixture
def joined(monkeypatch):
    """`joined(probes)`: an engine whose peers have come, and what it has handed over."""
    monkeypatch.setattr("learnmech.probes.together.all_present", lambda *_: True)

    def make(probes):
        mailbox, model = Kept(), torch.nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        engine = Engine(model, [optimizer], probes, Writer(mailbox), budget=0.01, foresees=True)
        assert engine.join(Peers())
        return engine, mailbox

    return make


def test_schedules_that_may_differ_between_processes_are_refused_in_all(joined):
    schedules = [None, every(2), at([3]), log_spaced(2), on_demand(), Own()]
    engine, mailbox = joined([Shared(schedule, name=f"p{i}") for i, schedule in enumerate(schedules)])
    assert sorted(engine.runner.health.off) == ["p4", "p5"]
    engine.writer.flush()
    assert [status for _, name, status, _ in mailbox.rows if name == "sharpness"] == ["unsupported"] * 2


def test_each_process_alone_may_ask_whatever_it_likes(joined):
    class Alone(Shared):
        collective = False

    engine, _ = joined([Shared(every(1), name="shared"), Alone(Own(), name="alone")])
    assert not engine.runner.health.off


def test_what_is_recorded_after_the_engine_has_failed_is_handed_over(joined):
    """The others still count on this process, which tells them that it does not measure."""
    engine, mailbox = joined([Shared(every(1), name="shared")])
    engine._guard.open = False
    for step in (1, 2):
        engine.at_rest(step, None, types.SimpleNamespace)
    assert [(step, status) for step, name, status, _ in mailbox.rows if name == "sharpness"] == [
        (1, "failed"),
        (2, "failed"),
    ]
    assert "stopped measuring" in mailbox.rows[-1][3]
