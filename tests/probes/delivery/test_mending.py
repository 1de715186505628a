"""Measurements that no message can hold as they came: converted, split or set aside, and never an exception."""

import logging

import numpy as np
import pytest

from learnmech.wire import MAX_STEP, Event, Measurement, Status


def test_numbers_of_other_types_are_converted(outbox, store, caplog):
    box = outbox()
    odd = [
        Measurement("loss", np.float32(1.5)),
        Measurement("sharpness", np.array(2.0), stderr=np.float64(0.5)),
        Measurement("grad_norm", object()),
        Measurement("weight_norm", 3.0),
    ]
    box.put(np.int64(3), odd, samples=np.int32(4), tokens="many")
    box.close()
    (frame,) = store.frames.values()
    assert (frame.step, frame.samples, frame.tokens) == (3, 4, None)
    assert [(item.observable, item.value) for item in frame.measurements] == [
        ("loss", 1.5),
        ("sharpness", 2.0),
        ("grad_norm", None),
        ("weight_norm", 3.0),
    ]
    assert frame.measurements[1].stderr == 0.5
    assert frame.measurements[2].status is Status.FAILED
    assert sum(record.levelno >= logging.WARNING for record in caplog.records) == 1


def test_a_text_where_a_number_belongs_costs_that_measurement_only(outbox, store, spool):
    box = outbox()
    box.put(0, [Measurement("loss", "high"), Measurement("sharpness", 2.0)])
    box.flush(20)
    (frame,) = store.frames.values()
    assert [item.observable for item in frame.measurements] == ["sharpness"]
    (reasons,) = spool.glob("*/*/rejected/reasons.jsonl")
    assert "loss" in reasons.read_text()


@pytest.mark.parametrize("step", [-1, MAX_STEP + 1, 2**70, "five", None])
def test_an_impossible_step_does_not_stop_training(outbox, store, step):
    box = outbox()
    box.put(step, [Measurement("loss", 1.0)])
    box.put(1, [Measurement("loss", 2.0)])
    box.close()
    assert store.steps[-1] == 1


def test_non_finite_values_are_data(outbox, store):
    box = outbox()
    box.put(0, [Measurement("loss", float(text)) for text in ("nan", "inf", "-inf")])
    box.close()
    (frame,) = store.frames.values()
    assert [str(item.value) for item in frame.measurements] == ["nan", "inf", "-inf"]


def test_a_frame_too_large_for_a_body_is_split(outbox, store):
    box = outbox()
    many = [Measurement("weight_norm", float(index), scope="x" * 240) for index in range(40_000)]
    box.put(5, many)
    box.put(6, (), [Event("user", 6, 1.0, data={"text": "x" * (5 << 20)})])
    box.close(30)
    assert sorted(item.value for frame in store.frames.values() for item in frame.measurements) == [
        float(index) for index in range(40_000)
    ]
    assert {frame.step for frame in store.frames.values()} == {5, 6}
    (event,) = [event for frame in store.frames.values() for event in frame.events]
    assert "characters" in event.data["lost"]
