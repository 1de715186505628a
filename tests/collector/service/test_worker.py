"""The background judge: coalescing, persistent, and finished before the process is."""

import threading
from collections import Counter

import pytest

from learnmech.collector.service import worker as module
from learnmech.collector.service.worker import JudgeWorker


@pytest.fixture
def make(request):
    """Make a worker that is stopped after the test."""

    def build(judge, behind=list, **more):
        worker = JudgeWorker(judge, behind, **more)
        request.addfinalizer(lambda: worker.stop(10))
        return worker

    return build


def test_runs_left_behind_are_judged_at_the_start(make):
    judged, done = [], threading.Event()

    def judge(run: str) -> int:
        judged.append(run)
        if len(judged) == 2:
            done.set()
        return 1

    make(judge, lambda: ["a", "b"], sweep=60).start()
    assert done.wait(20)
    assert judged == ["a", "b"]


def test_a_run_written_by_another_process_is_found(make):
    behind, done = [], threading.Event()

    def judge(run: str) -> int:
        behind.clear()
        done.set()
        return 1

    make(judge, lambda: list(behind), sweep=0.01).start()
    behind.append("theirs")
    assert done.wait(20)


def test_many_notifications_of_a_waiting_run_are_one_pass(make):
    entered, leave = threading.Event(), threading.Event()
    passes: Counter[str] = Counter()

    def judge(run: str) -> int:
        passes[run] += 1
        entered.set()
        assert leave.wait(20)
        return 0

    worker = make(judge, sweep=60)
    worker.start()
    worker.notify("first")
    assert entered.wait(20)
    for _ in range(1000):
        worker.notify("busy")
    assert worker.pending == 1
    leave.set()
    assert worker.stop(20)
    assert passes == {"first": 1, "busy": 1}


def test_what_arrives_during_a_pass_is_judged_afterwards(make):
    """The pass may have read before the new data was there."""
    entered, leave = threading.Event(), threading.Event()
    passes = []

    def judge(run: str) -> int:
        passes.append(run)
        entered.set()
        assert leave.wait(20)
        return 0

    worker = make(judge, sweep=60)
    worker.start()
    worker.notify("run")
    assert entered.wait(20)
    worker.notify("run")
    leave.set()
    assert worker.stop(20)
    assert passes == ["run", "run"]


def test_everything_that_waits_is_judged_before_the_end(make):
    judged = []
    worker = make(lambda run: judged.append(run) or 0, sweep=60)
    for number in range(50):
        worker.notify(f"run {number}")
    worker.start()
    assert worker.stop(20)
    assert sorted(judged) == sorted(f"run {number}" for number in range(50))


def test_a_run_that_cannot_be_judged_is_tried_again_and_holds_up_no_other(make, monkeypatch, caplog):
    monkeypatch.setattr(module, "_FIRST_RETRY", 0.02)
    attempts: Counter[str] = Counter()
    failed, done = Counter(), threading.Event()

    def judge(run: str) -> int:
        attempts[run] += 1
        if run == "bad" and attempts[run] < 3:
            raise RuntimeError("a law broke")
        if attempts["bad"] >= 3 and attempts["good"]:
            done.set()
        return 0

    worker = make(judge, sweep=60, failed=lambda: failed.update(["times"]))
    worker.start()
    worker.notify("bad")
    worker.notify("good")
    assert done.wait(20)
    assert failed["times"] == 2
    assert "a law broke" in caplog.text


def test_stopping_does_not_wait_for_retries(make):
    """The database is away: the process must still end, and the next start judges what is left."""
    tried = threading.Event()

    def judge(run: str) -> int:
        tried.set()
        raise RuntimeError("the database is away")

    worker = make(judge, sweep=60)
    worker.start()
    worker.notify("run")
    assert tried.wait(20)
    assert worker.stop(20)


def test_a_judge_that_hangs_does_not_hold_up_the_end_for_ever(make):
    leave = threading.Event()
    worker = make(lambda run: leave.wait(20) and 0, sweep=60)
    worker.start()
    worker.notify("run")
    assert not worker.stop(0.1)
    leave.set()


def test_failing_to_look_for_runs_is_survived(make, caplog):
    done = threading.Event()
    answers = iter([RuntimeError("the database is away")])

    def behind() -> list[str]:
        for error in answers:
            raise error
        return ["run"]

    make(lambda run: done.set() or 0, behind, sweep=0.01).start()
    assert done.wait(20)
    assert "cannot look for runs" in caplog.text
