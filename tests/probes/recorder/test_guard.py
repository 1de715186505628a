"""What a signal handler wants done is done at once outside the engine, and right after its work inside."""

import pytest

from learnmech.probes.guard import Guard


def test_outside_at_once_inside_at_the_end():
    guard, done = Guard(strict=False), []
    guard.outside(lambda: done.append("at once"))
    with guard:
        guard.outside(lambda: done.append("later"))
        with guard:
            pass
        done.append("work")
    assert done == ["at once", "work", "later"]


def test_also_where_the_work_fails():
    guard, done = Guard(strict=False), []
    with guard:
        guard.outside(lambda: done.append("later"))
        raise ValueError
    assert done == ["later"]
    assert guard.open


def test_ctrl_c_passes_and_the_action_is_done():
    guard, done = Guard(strict=False), []

    def interrupted():
        with guard:
            guard.outside(lambda: done.append("later"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done == ["later"]
