"""`log=`: numbers go to the trainer's logger as well, if one asks for it, and never at the price of the training."""

import math

import pytest
import torch

from learnmech.probes import Recorder, Vitals, WeightDynamics, every
from learnmech.probes.logs import Logs
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


def test_a_logger_that_fails_is_left_alone_after_one_warning(spool, caplog):
    calls = []

    def broken(values, step):
        calls.append(step)
        raise OSError("no space left")

    weights = trained(spool.url, broken)
    assert len(calls) == 1
    assert [record for record in caplog.records if "cannot log" in record.getMessage()]
    assert spool().all("loss"), "and the store has everything"
    assert torch.equal(weights, trained(f"{spool.url}-2", None))


def test_only_numbers_that_can_be_trusted():
    logged = []
    Logs(lambda values, step: logged.append((values, step))).tell(
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
