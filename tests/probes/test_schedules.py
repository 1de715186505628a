"""When probes with a schedule are due."""

import copy
import pickle

import pytest

from learnmech.probes import at, every, log_spaced, on_demand
from learnmech.probes.schedule import Every, alike


def measured_at(schedule, steps, since=-1, missed=()):
    found = []
    for step in range(since + 1, steps):
        if schedule.due(step, since) and step not in missed:
            found.append(step)
            since = step
    return found


def test_every():
    assert measured_at(every(3), 10) == [0, 3, 6, 9]
    assert measured_at(every(3, start=4), 12) == [4, 7, 10]
    assert measured_at(every(1), 4) == [0, 1, 2, 3]


@pytest.mark.parametrize("schedule", [every(4), at([0, 4, 8])], ids=repr)
def test_what_was_missed_is_made_up_for_at_once(schedule):
    assert measured_at(schedule, 10, missed={4, 5}) == [0, 6, 8]


def test_at_given_steps_in_any_order():
    assert measured_at(at([5, 0, 5, 2]), 10) == [0, 2, 5]


def test_log_spaced_from_any_start():
    assert measured_at(log_spaced(1), 10_001) == [1, 10, 100, 1000, 10_000]
    assert measured_at(log_spaced(2, start=7), 800) == [7, 22, 70, 221, 700]


def test_log_spaced_is_every_step_where_steps_are_wider_than_the_spacing():
    """Six per decade are less than one step apart below 3: each step counts once."""
    assert measured_at(log_spaced(100), 20) == list(range(1, 20))


@pytest.mark.parametrize("per_decade", [1, 3, 7, 10, 64])
def test_log_spaced_against_the_list_of_all_its_steps(per_decade):
    """Oracle: the definition, step by step, instead of the logarithm's inverse."""
    expected = sorted({round(10 ** (k / per_decade)) for k in range(5 * per_decade)})
    schedule = log_spaced(per_decade)
    for step in [*range(1, 200), 999, 1000, 1001, 12_345, 99_999]:
        assert schedule.latest(step) == max(s for s in expected if s <= step)


@pytest.mark.parametrize("schedule", [every(7, start=3), every(1), at([0, 5, 40]), log_spaced(3)], ids=repr)
def test_no_scheduled_step_is_passed_over_by_looking_again_only_when_told(schedule):
    """Oracle: asking at every step."""
    asked, step = [], 0
    while step < 100:
        if schedule.due(step, asked[-1] if asked else -1):
            asked.append(step)
        again = schedule.next(step)
        assert again > step
        step = again
    assert asked == measured_at(schedule, 100)


def test_on_demand_is_once_for_each_request_and_once_for_each_probe_that_shares_it():
    schedule = on_demand()
    assert measured_at(schedule, 5) == []
    schedule.request()
    schedule.request()
    assert schedule.due(5, -1)
    assert schedule.due(5, 4), "the second probe, at the same step"
    assert measured_at(schedule, 20, since=5) == []
    schedule.request()
    assert measured_at(schedule, 30, since=20) == [21]


def test_a_request_in_a_step_that_was_looked_at_is_for_the_next_one():
    schedule = on_demand()
    schedule.request()
    assert schedule.due(5, 4)
    schedule.request()
    assert not schedule.due(5, 5)
    assert schedule.due(6, 5)


def test_only_schedules_whose_steps_are_fixed_say_the_same_in_every_process():
    class Own(Every):
        """Who knows what it asks."""

    assert all(map(alike, [every(3), at([1]), log_spaced(2), None]))
    assert not any(map(alike, [on_demand(), Own(3)]))


@pytest.mark.parametrize("schedule", [every(3), at([1]), log_spaced(2), on_demand(10)], ids=repr)
def test_schedules_travel(schedule):
    for copied in (copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule))):
        assert repr(copied) == repr(schedule)
        assert copied.due(1, 0) == schedule.due(1, 0)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: every(0), r"every\(0\): expected a whole number of steps from 1 on"),
        (lambda: every(1.5), "every"),
        (lambda: every(3, start=-1), "start=-1"),
        (lambda: at([]), "expected steps from 0 on"),
        (lambda: at([1, -2]), "expected steps from 0 on"),
        (lambda: at([1.5]), "expected steps from 0 on"),
        (lambda: log_spaced(0), r"log_spaced\(0\)"),
        (lambda: log_spaced(3, start=0), "from 1 on"),
    ],
)
def test_what_is_no_schedule_is_said_at_once(make, said):
    with pytest.raises(ValueError, match=said):
        make()
