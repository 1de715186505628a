"""A law that breaks is a finding about the law; the cost of a verdict does not grow with the run."""

import math
from typing import ClassVar

import pytest

from learnmech.collector.judging import Judge
from learnmech.collector.store import UnknownRun
from learnmech.laws import Band, Law, Prediction
from learnmech.wire import Measurement


class Broken(Law):
    name = "broken"
    title = statement = reference = ""
    measures = ("user.m",)
    needs = ()
    band = Band(0.5, 2.0, "a test")
    advice: ClassVar = {}

    def __init__(self, say):
        self._say = say

    def predict(self, state):
        return self._say(state)


class Fine(Broken):
    name = "fine"

    def __init__(self):
        super().__init__(lambda state: Prediction(1.0))


def explode(_state):
    raise ZeroDivisionError("division by zero")


@pytest.mark.parametrize(
    ("say", "sentence"),
    [
        (explode, "predict raised ZeroDivisionError: division by zero"),
        (lambda _: 20.0, "predict returned 20.0; expected a learnmech.laws.Prediction"),
        (lambda _: Prediction("many"), "predict returned a value of 'many'; expected a number"),
        (lambda _: Prediction(), "neither a value nor a reason"),
        (lambda _: Prediction(1.0, band=3), "judging raised AttributeError"),
    ],
)
def test_a_broken_law_is_an_event_and_not_applicable(store, writer, say, sentence):
    someone = writer()
    frames = [someone.frame(step, Measurement("user.m", 1.0)) for step in range(5)]
    judge = Judge(store, [Broken(say), Fine()])
    for frame in frames:
        assert store.ingest(someone.batch(frame)).accepted == 1
        assert judge.judge(someone.run.id) == 2
    residuals = store.residuals(someone.run.id, "broken")
    assert residuals["verdict"] == ["not_applicable"] * 5
    assert sentence in residuals["reason"][0]
    # One event, not one per measurement; and the law beside it is judged as ever.
    [event] = store.events(someone.run.id)
    assert (event.kind, event.severity, event.step, event.data["law"]) == ("law_failed", "error", 0, "broken")
    assert sentence in event.message
    assert store.residuals(someone.run.id, "fine")["verdict"][-1] == "holds"
    Judge(store, [Broken(say)]).judge(someone.run.id, from_step=0)
    assert len(store.events(someone.run.id)) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 0.0])
def test_a_prediction_that_is_no_positive_number_is_undetermined(store, writer, value):
    someone = writer()
    store.ingest(someone.batch(someone.frame(0, Measurement("user.m", 1.0))))
    Judge(store, [Broken(lambda _: Prediction(value, stderr=math.nan))]).judge(someone.run.id)
    residuals = store.residuals(someone.run.id, "broken")
    assert residuals["verdict"] == ["undetermined"]
    assert residuals["predicted"] == [value if math.isfinite(value) else None]
    assert store.events(someone.run.id) == []


def test_an_unknown_run(store):
    with pytest.raises(UnknownRun):
        Judge(store).judge("abc")


def test_a_verdict_costs_the_same_however_long_the_run_is(tmp_path, writer, new_run):
    """Counted in steps of SQLite's virtual machine, which no neighbour disturbs.

    The learning rate comes with every step, which is the worst case: since when it is in force lies far back.
    """
    from learnmech.collector.store import Store

    someone = writer(new_run(context={"optimizer": "SGD"}))
    counted = 0

    def count():
        nonlocal counted
        counted += 1

    def batch(length):
        return someone.batch(
            *(
                someone.frame(
                    someone.sequence, learning_rate=0.1, full_batch=1.0, deterministic_loss=1.0, sharpness=19.0
                )
                for _ in range(length)
            )
        )

    with Store.open(f"sqlite:///{tmp_path / 'store.db'}") as store:
        judge = Judge(store)
        costs = []
        for length in (100, 5000):
            store.ingest(batch(length))
            judge.judge(someone.run.id)
            raw = store.database._writer.raw_connection()
            raw.driver_connection.set_progress_handler(count, 10)
            raw.close()
            counted = 0
            store.ingest(batch(10))
            judge.judge(someone.run.id)
            costs.append(counted)
        assert costs[1] < 1.5 * costs[0]
        assert store.laws(someone.run.id)[0].step == 5119
