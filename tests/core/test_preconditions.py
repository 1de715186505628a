"""Preconditions in production: decay by group, small data sets, optimizers that climb; and hostile histories."""

import math

import pytest

from learnmech.laws import LOOKS, Point, State, Value, Verdict, get, judge
from learnmech.laws.edge_of_stability import adam_threshold
from learnmech.observables import Status

EDGE, NOISE = get("edge_of_stability"), get("gradient_noise_scale")


def edge(optimizer, observable, flags=(), **values):
    values = {"learning_rate": 1e-3, "full_batch": 1.0, "deterministic_loss": 1.0, "beta1": 0.9} | values
    context = {"optimizer": optimizer, "optimizer_flags": list(flags)}
    return EDGE.predict(State(observable, 10, values={k: Value(v) for k, v in values.items()}, context=context))


def test_decoupled_decay_may_differ_between_groups():
    """The usual set-up: decay on matrices, none on biases and norms. It moves the edge by eta lambda / 2 = 5e-5."""
    prediction = edge("AdamW", "sharpness_preconditioned", weight_decay=None, decoupled_weight_decay=1.0)
    assert prediction.value == pytest.approx(adam_threshold(1e-3, 0.9, 0.1), rel=1e-4)


def test_coupled_decay_may_not():
    for values in ({"weight_decay": None, "decoupled_weight_decay": 0.0}, {}):
        assert "groups differ" in edge("Adam", "sharpness_preconditioned", **values).not_applicable
    assert "groups differ" in edge("SGD", "sharpness", weight_decay=None).not_applicable


def test_an_optimizer_that_climbs_has_no_edge():
    assert "maximizes" in edge("SGD", "sharpness", flags=["maximize"], weight_decay=0.0).not_applicable


@pytest.mark.parametrize(
    ("batch", "accumulation", "dataset", "applies"),
    [(100, 1, 1000, True), (101, 1, 1000, False), (400, 4, 1000, True), (900, 1, None, True)],
)
def test_batches_must_be_a_small_part_of_the_data_set(batch, accumulation, dataset, applies):
    numbers = {"noise_trace": 3.0, "batch_size": batch, "accumulation": accumulation, "dataset_size": dataset}
    values = {name: Value(float(value), step=5) for name, value in numbers.items() if value is not None}
    prediction = NOISE.predict(State("noise_trace_between", 5, values=values))
    assert bool(prediction.not_applicable) is not applies
    assert applies or "share too many examples" in prediction.not_applicable


NAN = math.nan
HOSTILE = [
    Point(1, NAN, predicted=1.0),
    Point(1, 1.0, predicted=NAN),
    Point(1, 1.0, predicted=0.0),
    Point(1, 1.0, predicted=-1.0),
    Point(1, math.inf, predicted=1.0),
    Point(1, 1.0, NAN, predicted=1.0),
    Point(1, 1.0, 0.1, predicted=1.0, predicted_stderr=NAN),
    Point(1, None, predicted=1.0, status=Status.FAILED),
    Point(1, 1.0, not_applicable="no"),
]


@pytest.mark.parametrize("bad", HOSTILE)
@pytest.mark.parametrize("law", [EDGE, NOISE])
def test_one_bad_point_neither_breaks_nor_alarms(law, bad):
    good = [Point(step, 1.0 + 0.001 * (step % 3), 0.0, predicted=1.0) for step in range(2, law.window + LOOKS)]
    for history in ([], [bad], [*good, bad], [bad, *good]):
        for newest in (good[-1], bad):
            assert judge(law, newest, history).verdict is not Verdict.DEVIATES
    assert judge(law, good[-1], [bad, *good]).verdict is Verdict.HOLDS
