"""The values in force: the scope's own, else the whole model's, and since when."""

from typing import ClassVar

from learnmech.collector.judging.force import Force, Record, names
from learnmech.laws import Prediction, get
from learnmech.laws.law import Band, Law
from learnmech.observables import Status


class Wants(Law):
    name = "wants"
    title = statement = reference = ""
    measures = ("user.m",)
    needs = ("learning_rate",)
    uses = ("weight_decay",)
    band = Band(0.5, 2.0, "a test")
    advice: ClassVar = {}

    def predict(self, state):
        return Prediction(1.0)


def record(step, name, value, scope="", status=Status.OK):
    return Record(step, (name, scope), 0, value, None, status)


def taken(*records):
    force = Force()
    for item in records:
        force.take(item)
    return force


def test_since_is_where_the_number_began():
    force = taken(*(record(step, "learning_rate", value) for step, value in [(0, 1.0), (5, 1.0), (9, 2.0), (12, 2.0)]))
    value = force.values["learning_rate", ""]
    assert (value.value, value.step, value.since) == (2.0, 12, 9)


def test_a_record_without_a_number_breaks_the_run_of_equal_ones():
    absent = record(5, "learning_rate", None, status=Status.UNSUPPORTED)
    force = taken(record(0, "learning_rate", 1.0), absent, record(9, "learning_rate", 1.0))
    assert force.values["learning_rate", ""].since == 9
    value = taken(record(0, "learning_rate", 1.0), absent).values["learning_rate", ""]
    assert (value.value, value.status, value.since) == (None, Status.UNSUPPORTED, 5)


def test_the_scope_itself_comes_before_the_whole_model():
    force = taken(
        record(0, "learning_rate", 1.0), record(0, "weight_decay", 0.1), record(0, "weight_decay", 0.0, "bias")
    )
    seen = force.seen_by(Wants(), "bias")
    assert (seen["learning_rate"].value, seen["weight_decay"].value) == (1.0, 0.0)
    assert force.seen_by(Wants(), "weight")["weight_decay"].value == 0.1
    assert "momentum" not in seen


def test_a_copy_is_independent():
    force = taken(record(0, "learning_rate", 1.0))
    force.copy().take(record(1, "learning_rate", 2.0))
    assert force.values["learning_rate", ""].value == 1.0


def test_names_are_everything_that_laws_look_at():
    assert names([Wants()]) == ["learning_rate", "user.m", "weight_decay"]
    law = get("edge_of_stability")
    assert set(names([law])) == {*law.measures, *law.needs, *law.uses}
