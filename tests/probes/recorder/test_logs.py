"""`log=`: numbers go to the trainer's logger as well, if one asks for it, and never at the price of the training."""

import math
import threading
import time
import types

import pytest
import torch

from learnmech.probes import Recorder, Vitals, WeightDynamics, every
from learnmech.probes.logs import WAITING, Behind, Paced
from learnmech.wire import Measurement, Status


def trained(sink, log, steps=6):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(16, 4)
    with Recorder(
        model,
        optimizer,
        lambda m, b: m(b).square().mean(),
        [WeightDynamics(every(2)), Vitals(every(1))],
        sink=sink,
        log=log,
    ) as recorder:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            recorder.after_step(x, loss)
    return model.weight.detach().clone()


def test_the_same_numbers_at_the_same_steps_as_in_the_store(spool):
    logged = {}
    trained(spool.url, lambda values, step: logged.setdefault(step, {}).update(values))
    stored = spool()
    for name in ("loss", "weight_norm", "learning_rate"):
        found = {step: values[f"learnmech/{name}"] for step, values in logged.items() if f"learnmech/{name}" in values}
        assert found == {
            frame.step: m.value
            for frame in stored.frames
            for m in frame.measurements
            if (m.observable, m.scope) == (name, "")
        }
        assert found
    assert any(key.startswith("learnmech/weight_norm/type:Linear") for values in logged.values() for key in values)


def test_a_logger_that_fails_three_times_in_a_row_is_left_alone_after_one_warning(spool, caplog):
    calls = []

    def broken(values, step):
        calls.append(step)
        raise OSError("no space left")

    weights = trained(spool.url, broken)
    assert len(calls) == 3
    assert [record for record in caplog.records if "cannot log" in record.getMessage()]
    assert spool().all("loss"), "and the store has everything"
    assert torch.equal(weights, trained(f"{spool.url}-2", None))


def test_a_failure_now_and_then_does_not_silence_it():
    calls = []

    def flaky(values, step):
        calls.append(step)
        if step % 3:
            raise OSError("try again")

    logs = Behind(flaky)
    for step in range(12):
        logs.tell(step, [Measurement("loss", 1.0)])
    logs.end()
    logs.wait(10)
    assert calls == list(range(12))


def test_another_run_tries_again(caplog):
    calls = []

    def broken(values, step):
        calls.append(step)
        raise OSError("no network yet")

    logs = Behind(broken)
    for run in range(3):
        for step in range(5):
            logs.tell(step, [Measurement("loss", 1.0)])
        logs.end()
        logs.wait(10)
        assert len(calls) == 3 * (run + 1)
    assert len(caplog.records) == 3


def test_a_logger_that_hangs_holds_up_neither_the_steps_nor_the_end(caplog):
    go, logged = threading.Event(), []

    def hangs(values, step):
        go.wait(30)
        logged.append(step)

    logs = Behind(hangs)
    begin = time.monotonic()
    for step in range(WAITING + 50):
        logs.tell(step, [Measurement("loss", 1.0)])
    logs.end()
    logs.wait(0.1)
    assert time.monotonic() - begin < 5
    assert len([record for record in caplog.records if "too slow" in record.getMessage()]) == 1
    go.set()
    logs.tell(1000, [Measurement("loss", 1.0)])  # of another run
    logs.end()
    logs.wait(10)
    deadline = time.monotonic() + 10
    while len(logged) < 2 and time.monotonic() < deadline:  # the thread that hung ends by itself
        time.sleep(0.01)
    assert len(logged) == 2
    assert 1000 in logged


def test_what_waits_longest_is_dropped():
    go, logged = threading.Event(), []
    logs = Behind(lambda values, step: (go.wait(30), logged.append(step)))
    for step in range(WAITING + 50):
        logs.tell(step, [Measurement("loss", 1.0)])
    go.set()
    logs.end()
    logs.wait(10)
    assert logged[-WAITING + 1 :] == list(range(51, WAITING + 50)), "one more is the thread's or the queue's"
    assert len(logged) <= WAITING + 1


def test_loggers_in_the_training_thread_take_no_more_than_their_share(monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr("learnmech.probes.logs.time", types.SimpleNamespace(perf_counter=lambda: now[0]))

    def slow(values, step):
        now[0] += 0.5
        calls.append((step, values))

    logs = Paced(slow, share=0.01)
    for step in range(10000):
        now[0] += 0.1
        logs.tell(step, [Measurement("loss", float(step))])
        if step % 100 == 0:
            logs.tell(step, [Measurement("sharpness", float(step))])
    spent, elapsed = 0.5 * len(calls), now[0]
    assert 0.005 * elapsed < spent <= 0.01 * elapsed + 1.0
    assert all(value == step for step, values in calls for value in values.values()), "each at its own step"
    logs.end()
    assert calls[-1] == (9999, {"learnmech/loss": 9999.0})


def test_without_a_budget_for_probes_the_loggers_have_one(monkeypatch):
    """Measured by schedule, once a minute: each is logged at its time."""
    now, calls = [0.0], []
    monkeypatch.setattr("learnmech.probes.logs.time", types.SimpleNamespace(perf_counter=lambda: now[0]))

    def log(values, step):
        now[0] += 0.1
        calls.append(step)

    logs = Paced(log, share=0.0)
    for step in range(5):
        logs.tell(step, [Measurement("sharpness", 1.0)])
        now[0] += 60
    assert calls == list(range(5))


def test_a_fast_logger_is_called_once_a_second(monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr("learnmech.probes.logs.time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    logs = Paced(lambda values, step: calls.append(now[0]), share=0.01)
    for step in range(100):
        now[0] = step / 10
        logs.tell(step, [Measurement("loss", 1.0)])
    assert calls == pytest.approx(list(range(10)))


def test_only_numbers_that_can_be_trusted():
    logged = []
    Paced(lambda values, step: logged.append((values, step)), 0.01).tell(
        3,
        [
            Measurement("loss", 1.0),
            Measurement("grad_norm", math.nan, status=Status.NON_FINITE),
            Measurement("noise_scale", None, status=Status.UNDETERMINED),
            Measurement("sharpness", 5.0, status=Status.UNDETERMINED),
            Measurement("weight_norm", 2.0, scope="type:Linear"),
        ],
    )
    assert logged == [({"learnmech/loss": 1.0, "learnmech/weight_norm/type:Linear": 2.0}, 3)]


def test_what_is_no_function_is_said_at_once():
    model = torch.nn.Linear(1, 1)
    with pytest.raises(TypeError, match=r"expected a function log\(values, step\)"):
        Recorder(model, torch.optim.SGD(model.parameters(), lr=0.1), lambda m, b: m(b).sum(), log="tensorboard")
