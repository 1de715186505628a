"""When probes are due: no schedule raises into the training, no due step is passed over, several processes keep the
budget."""

import itertools
import types

import numpy as np
import pytest

from learnmech.probes import BaseProbe, Moment, agenda, at, every, log_spaced, on_demand
from learnmech.probes.agenda import Agenda
from learnmech.probes.budget import Governor
from learnmech.probes.health import Health
from learnmech.probes.schedule import Schedule


class Own(BaseProbe):
    moment = Moment.UPDATE

    def __init__(self, name, schedule=None, collective=False):
        super().__init__(schedule, name=name)
        self.collective = collective


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = types.SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(agenda.time, "perf_counter", lambda: now.seconds)
    return now


def made(probes, budget=0.01, **settings):
    governor = Governor(budget)
    return Agenda(probes, governor, Health(), **{"start_step": 0, "foresees": False} | settings), governor


def test_a_schedule_that_raises_ends_its_probe_and_nothing_else():
    class Broken(Schedule):
        def latest(self, step):
            if step == 3:
                raise KeyError("step")
            return -1

    probes = [Own("broken", Broken()), Own("whole", every(2))]
    found, _ = made(probes)
    said = []

    def off(probe, step, reason):
        said.append((probe.name, step, reason))
        found._health.refuse(probe.name, reason)

    found.trouble = off
    due = []
    for step in range(8):
        for probe in found.due(Moment.UPDATE, step):
            due.append((step, probe.name))
            found.looked(probe.name, step)
    assert due == [(0, "whole"), (2, "whole"), (4, "whole"), (6, "whole")]
    assert [(name, step) for name, step, _ in said] == [("broken", 3)]
    assert "KeyError" in said[0][2]


@pytest.mark.parametrize("asked", ["latest", "next"])
def test_a_schedule_that_answers_nothing_ends_its_probe(asked):
    class Nothing(Schedule):
        def latest(self, step):
            return -1 if asked == "next" else None

        def next(self, step):
            return step + 1 if asked == "latest" else None

    found, _ = made([Own("nothing", Nothing())])
    said = []

    def off(probe, step, reason):
        said.append(reason)
        found._health.refuse(probe.name, reason)

    found.trouble = off
    assert not [due for step in range(5) for due in found.due(Moment.UPDATE, step)]
    assert len(said) == 1
    assert "TypeError" in said[0]


def test_a_schedule_may_answer_with_numbers_of_numpy():
    class Numpy(Schedule):
        def latest(self, step):
            return np.int64(step - step % 2)

        def next(self, step):
            return np.float64(step + 1)

    found, _ = made([Own("numpy", Numpy())])
    due = []
    for step in range(6):
        due += [step for probe in found.due(Moment.UPDATE, step)]
        found.looked("numpy", step)
    assert due == [0, 2, 4]


@pytest.mark.parametrize("foresees", [True, False])
def test_what_is_asked_for_before_the_run_or_in_its_first_step_is_measured(foresees):
    """Weights at rest are first seen at step 1 in a loop, at step 0 under a trainer."""
    for asked_at in (-1, 0):
        probe = Own("p", on_demand())
        probe.moment = Moment.AT_REST
        if asked_at < 0:
            probe.schedule.request()
        found, _ = made([probe], foresees=foresees)
        if asked_at == 0:
            probe.schedule.request()
        due = []
        for step in range(0 if foresees else 1, 4):
            for one in found.due(Moment.AT_REST, step):
                due.append(step)
                found.looked(one.name, step)
        assert due == [0 if foresees else 1]


def test_resting_passes_over_nothing(clock):
    """Oracle: the schedules asked one by one, at every step."""
    probes = [Own("a", every(7, start=3)), Own("b", at([5, 50])), Own("c", log_spaced(4)), Own("d", on_demand())]
    found, _ = made(probes)
    due = []
    for step in range(100):
        clock.seconds += 0.001
        if step == 33:
            probes[3].schedule.request()
        for probe in found.due(Moment.UPDATE, step):
            due.append((step, probe.name))
            found.looked(probe.name, step)
    expected = {(step, "a") for step in range(3, 100, 7)} | {(5, "b"), (50, "b"), (33, "d")}
    expected |= {(round(10 ** (k / 4)), "c") for k in range(8)}
    assert sorted(due) == sorted(expected)


def test_what_an_earlier_run_was_asked_for_is_not_measured_again():
    schedule = on_demand()
    schedule.request()
    assert schedule.due(50, 49)
    found, _ = made([Own("p", schedule)])
    assert not found.due(Moment.UPDATE, 0)
    schedule.request()
    assert found.due(Moment.UPDATE, 1)


def test_a_resumed_run_measures_at_its_first_step_where_that_is_seen():
    probe = Own("p", every(100))
    probe.moment = Moment.AT_REST
    assert made([probe], start_step=100, foresees=True)[0].due(Moment.AT_REST, 100)
    assert not made([probe], start_step=100, foresees=False)[0].due(Moment.AT_REST, 101), "measured before it was saved"


@pytest.mark.parametrize("pause", [0.0, 30.0, 300.0])
def test_several_processes_keep_the_budget_across_pauses(clock, pause):
    """Steps of 20 ms, a measurement of 0.5 s, 1 %: one every 2 500 steps, at fixed steps that one process decides."""
    probe = Own("p", collective=True)
    found, governor = made([probe])
    found.peers = types.SimpleNamespace(first=float)
    uses = []
    for step in range(40_000):
        clock.seconds += 0.02 + (pause if step % 500 == 499 else 0.0)
        for due in found.due(Moment.UPDATE, step):
            governor.charge(due.name, 0.5)
            uses.append(clock.seconds)
            clock.seconds += 0.5
            found.looked(due.name, step)
            found.agree(due, step, found.peers)
        found.stepped()
    assert len(uses) >= 14
    for (i, begin), (j, last) in itertools.combinations(enumerate(uses[1:]), 2):
        assert 0.5 * (j - i + 1) <= 0.01 * (last - begin) + 0.5 + 0.05, "its share, and one use more"
