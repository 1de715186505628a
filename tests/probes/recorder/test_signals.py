"""Signals from inside a process: who listens when, and what is back afterwards."""

import faulthandler
import gc
import os
import signal
import threading
import weakref
from pathlib import Path

import pytest
import torch

from learnmech.probes import Recorder, Vitals, on_demand


@pytest.fixture
def recorder(spool):
    def make(probes=(), **settings):
        model = torch.nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return Recorder(model, optimizer, lambda m, b: m(b).square().mean(), probes, sink=spool.url, **settings)

    return make


@pytest.fixture
def heard():
    """Numbers of the SIGUSR1 that came through to the handler from before."""
    numbers = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGUSR1, before)


def in_thread(action):
    raised = []

    def run():
        try:
            action()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(20)
    assert not raised


@pytest.mark.parametrize("schedule", [None, on_demand(signal.SIGUSR1)])
def test_a_run_closed_in_another_thread_keeps_nothing_alive(schedule, recorder, heard):
    run = recorder([] if schedule is None else [Vitals(schedule)]).__enter__()
    model = weakref.ref(run._model)
    in_thread(run.close)
    del run
    gc.collect()
    assert model() is None
    with recorder():  # its end is in the main thread, which alone may put handlers back
        pass


def test_sigterm_is_listened_to_as_long_as_a_run_is_open(recorder):
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with recorder():
        with recorder():
            inner = signal.getsignal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is inner is not signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.set_wakeup_fd(-1) == -1


def test_who_has_the_wakeup_descriptor_keeps_it(recorder):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    try:
        with recorder():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        assert signal.set_wakeup_fd(-1) == writer
        os.close(reader)
        os.close(writer)


def test_a_fork_in_between_leaves_the_wakeup_descriptor_to_the_parent(recorder):
    with recorder():
        child = os.fork()
        if child == 0:
            alone = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL and signal.set_wakeup_fd(-1) == -1
            os._exit(0 if alone else 1)
        assert os.waitpid(child, 0)[1] == 0
        found = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(found, warn_on_full_buffer=False)
        assert found >= 0


def test_the_end_in_another_thread_is_recorded(recorder, spool, heard):
    first = recorder([Vitals(on_demand(signal.SIGUSR1))])
    first.__enter__()
    in_thread(lambda: first.close(ValueError("the user's own")))
    assert spool().of_kind("run_failed")[0].message == "ValueError at step 0: the user's own"
    os.kill(os.getpid(), signal.SIGUSR1)
    assert heard == [signal.SIGUSR1], "whoever listened before still does"
    with recorder():
        pass
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_runs_that_end_in_the_order_in_which_they_began_leave_nothing_behind(recorder, heard):
    """Two monitors of one fit, closed as callbacks are: the first one first."""
    before = signal.getsignal(signal.SIGUSR1)
    for _ in range(3):
        schedules = on_demand(signal.SIGUSR1), on_demand(signal.SIGUSR1)
        first, second = (recorder([Vitals(schedule)]) for schedule in schedules)
        first.__enter__()
        second.__enter__()
        first.close()
        heard.clear()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert heard == [signal.SIGUSR1]
        assert [schedule.due(1, 0) for schedule in schedules] == [False, True], "only who is open is asked"
        second.close()
        assert signal.getsignal(signal.SIGUSR1) is before


def test_signals_that_code_in_c_listens_to_stay_with_it(recorder, caplog):
    """The order in which faulthandler and a run begin decides: it would not get its signal back from us."""
    with Path(os.devnull).open("w", encoding="utf-8") as traces:
        for number in (signal.SIGTERM, signal.SIGUSR2):
            faulthandler.register(number, file=traces)
        try:
            with recorder([Vitals(on_demand(signal.SIGUSR2))]):
                for number in (signal.SIGTERM, signal.SIGUSR2):
                    assert signal.getsignal(number) is signal.SIG_DFL
                    os.kill(os.getpid(), number)
            os.kill(os.getpid(), signal.SIGUSR2)
        finally:
            for number in (signal.SIGTERM, signal.SIGUSR2):
                assert faulthandler.unregister(number)
    assert any(f"nothing at signal {int(signal.SIGUSR2)}" in message for message in caplog.messages)


def test_the_end_of_its_pipe_ends_the_thread_that_watches(recorder):
    def watching():
        return [thread for thread in threading.enumerate() if thread.name == "learnmech-sigterm"]

    with recorder():
        (thread,) = watching()
        writer = signal.set_wakeup_fd(-1)
        other = os.open(os.devnull, os.O_RDWR | os.O_NONBLOCK)
        os.dup2(other, writer)  # as a program does that closes what it does not know
        os.close(other)
        thread.join(5)
        assert not thread.is_alive()
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    assert not watching()


def test_a_run_in_another_thread_is_measured(recorder, spool):
    def run():
        with recorder([Vitals(on_demand(signal.SIGUSR1))]):
            pass

    in_thread(run)
    assert spool().of_kind("run_finished")


def test_one_run_at_a_time_and_then_the_next_attempt(recorder, spool):
    again = recorder()
    with again, pytest.raises(RuntimeError, match="has begun already"):
        again.__enter__()
    with again:
        pass
    assert spool().attempts == [0, 1]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, 0, -1, 999, True, "SIGUSR1"])
def test_what_nobody_can_listen_to_is_said_at_once(number):
    with pytest.raises(ValueError, match="expected a signal to listen to"):
        on_demand(number)
