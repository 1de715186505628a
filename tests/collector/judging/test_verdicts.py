"""Synthetic series in, expected verdicts out, negative cases included."""

import math
import random

import pytest

from learnmech.collector.judging import Judge
from learnmech.wire import Measurement, Status

DESCENT = {"full_batch": 1, "deterministic_loss": 1, "momentum": 0, "weight_decay": 0}


def hyperparameters(scope: str = "", **values: float | None) -> list[Measurement]:
    return [
        Measurement(name, value, scope, status=Status.OK if value is not None else Status.UNSUPPORTED)
        for name, value in values.items()
    ]


@pytest.fixture
def judged(store, writer, new_run):
    """Store frames of (step, measurements) one batch each, judging after each; return the residuals."""

    def play(law, frames, scope="", **context):
        someone = writer(new_run(context=context))
        judge = Judge(store)
        for step, measurements in frames:
            assert store.ingest(someone.batch(someone.frame(step, *measurements))).rejected == []
            judge.judge(someone.run.id)
        return someone.run.id, store.residuals(someone.run.id, law, scope)

    return play


def test_descent_rises_to_the_edge_stays_and_starts_anew_when_the_rate_is_halved(judged, store, rows):
    noise = random.Random(1)
    frames = [(0, hyperparameters(learning_rate=0.1, **DESCENT))]
    for step in range(0, 1200, 20):
        sharpness = min(20.2, 2.0 + step * 0.06) if step < 600 else min(40.4, 20.2 + (step - 600) * 0.06)
        measured = [Measurement("sharpness", sharpness + noise.gauss(0, 0.1), stderr=0.01)]
        frames.append((step, [*measured, *(hyperparameters(learning_rate=0.05) if step == 600 else [])]))
    run, residuals = judged("edge_of_stability", frames, optimizer="SGD")
    at = dict(zip(residuals["step"], residuals["verdict"], strict=True))
    assert {at[step] for step in range(0, 240, 20)} == {"sub_edge"}
    assert {at[step] for step in range(500, 600, 20)} == {"holds"}
    assert {at[step] for step in range(600, 840, 20)} == {"sub_edge"}
    assert {at[step] for step in range(1140, 1200, 20)} == {"holds"}
    assert residuals["predicted"] == [20.0] * 30 + [40.0] * 30
    assert (residuals["lower"][0], residuals["upper"][0]) == (18.0, 23.0)
    assert residuals["time"][3] == 1060.0
    [law] = store.laws(run)
    assert (law.verdict, law.step, law.since_step) == ("holds", 1180, law.changes[-1].step)
    assert [change.verdict for change in law.changes] == [
        "sub_edge",
        "undetermined",
        "holds",
        "sub_edge",
        "undetermined",
        "holds",
    ]
    assert rows(store, "SELECT ratio FROM residuals WHERE step = 1180") == [(residuals["ratio"][-1],)]
    assert residuals["ratio"][-1] == residuals["measured"][-1] / 40.0


@pytest.mark.parametrize(
    ("changed", "context", "verdict", "reason"),
    [
        ({"full_batch": 0}, {}, "not_applicable", "Batches are sampled"),
        ({"deterministic_loss": 0}, {}, "not_applicable", "random at fixed weights"),
        ({"learning_rate": None}, {}, "not_applicable", "Not one learning rate"),
        ({}, {"gradient_clip": 1.0}, "not_applicable", "Gradients are clipped at 1"),
        ({}, {"optimizer": ""}, "not_applicable", "did not record its optimizer"),
        ({"learning_rate": 0.2}, {}, "deviates", "above the band"),
    ],
)
def test_preconditions_are_read_from_what_was_recorded(judged, changed, context, verdict, reason):
    known = hyperparameters(**{"learning_rate": 0.1, **DESCENT, **changed})
    frames = [(0, known)] + [(step, [Measurement("sharpness", 20.0 + 0.01 * (step % 3))]) for step in range(1, 12)]
    _, residuals = judged("edge_of_stability", frames, **{"optimizer": "SGD", **context})
    assert residuals["verdict"][-1] == verdict
    assert reason in residuals["reason"][-1]
    assert (residuals["ratio"][-1] is None) == (verdict == "not_applicable")


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_a_measurement_without_a_finite_number_is_undetermined(judged, value):
    bad = Measurement("sharpness", value, status=Status.OK if value is not None else Status.FAILED)
    frames = [(0, hyperparameters(learning_rate=0.1, **DESCENT)), (1, [bad])]
    _, residuals = judged("edge_of_stability", frames, optimizer="SGD")
    assert residuals["verdict"] == ["undetermined"]
    assert residuals["measured"] == [None]
    assert residuals["predicted"] == [20.0]
    assert "status" in residuals["reason"][0]


def test_only_the_gauge_of_the_optimizer_is_judged(judged):
    """Adam records raw sharpness too; the law's gauge is the preconditioned one."""
    known = hyperparameters(
        learning_rate=1e-3, full_batch=1, deterministic_loss=1, beta1=0.9, weight_decay=0, decoupled_weight_decay=1
    )
    both = [Measurement("sharpness", 5.0), Measurement("sharpness_preconditioned", 38_000.0)]
    _, residuals = judged("edge_of_stability", [(0, known), (1, both)], optimizer="Adam")
    assert (residuals["measured"], residuals["ratio"]) == ([38_000.0], [pytest.approx(1.0)])
    _, alone = judged("edge_of_stability", [(0, known), (1, both[:1])], optimizer="Adam")
    assert alone["step"] == []


def test_each_scope_has_its_own_verdict(judged, store):
    known = hyperparameters(learning_rate=0.1, weight_decay=None, momentum=0)
    known += hyperparameters("head", weight_decay=0.0) + hyperparameters("body", weight_decay=0.01)
    frames = [(0, known)]
    angle = math.sqrt(2 * 0.1 * 0.01)
    frames += [
        (step, [Measurement("angular_update", angle, scope), Measurement("scale_invariance", 0.0, scope)])
        for step in range(2000, 2010)
        for scope in ("head", "body")
    ]
    run, body = judged("rotational_equilibrium", frames, scope="body", optimizer="SGD")
    assert body["verdict"][-1] == "holds"
    assert body["predicted"][-1] == pytest.approx(angle)
    head = store.residuals(run, "rotational_equilibrium", "head")
    assert set(head["verdict"]) == {"not_applicable"}
    assert "No weight decay" in head["reason"][0]


def test_a_resume_with_another_optimizer_is_judged_as_such(store, writer, new_run):
    first = writer(new_run(context={"optimizer": "SGD"}))
    known = hyperparameters(learning_rate=0.1, **DESCENT)
    store.ingest(first.batch(first.frame(0, *known), *(first.frame(step, sharpness=20.0) for step in range(1, 11))))
    judge = Judge(store)
    judge.judge(first.run.id)
    second = writer(new_run(id=first.run.id, context={"optimizer": "Lion"}), attempt=1, start_step=6)
    store.ingest(second.batch(second.frame(6, sharpness=21.0)))
    judge.judge(first.run.id)
    residuals = store.residuals(first.run.id, "edge_of_stability")
    assert residuals["step"] == [1, 2, 3, 4, 5, 6]
    assert residuals["verdict"][4:] == ["holds", "not_applicable"]
    assert "Lion" in residuals["reason"][5]
    assert [c.step for c in store.laws(first.run.id)[0].changes] == [1, 5, 6]
