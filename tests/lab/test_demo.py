"""`learnmech demo --quick --json`, from the command line to the database."""

import pytest

from learnmech.collector.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

EDGE, NOISE, ROTATION = "edge_of_stability", "gradient_noise_scale", "rotational_equilibrium"


@pytest.fixture
def store(demo):
    store = Store.open(demo.database, create=False)
    yield store
    store.close()


def test_the_table_has_every_law_with_a_verdict_and_nothing_went_wrong(demo):
    assert demo.document["problems"] == []
    shown = {(row["run"], row["law"]) for row in demo.document["table"]}
    assert shown >= {("digits-gd", EDGE), ("stdlib-adamw", EDGE), ("stdlib-adamw", NOISE), ("stdlib-adamw", ROTATION)}
    assert {row["verdict"] for row in demo.document["table"]} <= {"holds", "undetermined", "not_applicable"}
    assert all(row["reason"] for row in demo.document["table"])


def test_gradient_descent_rides_the_edge(demo):
    """The criterion of the demo: the last third at the edge, and the law holds there."""
    assert 0.95 <= demo.document["edge"]["median_ratio"] <= 1.10
    assert demo.headline(EDGE, "digits-gd")["verdict"] == "holds"


def test_halving_the_learning_rate_doubles_the_prediction_and_the_run_climbs_again(demo, store):
    """Read from the store, not from what the demo printed: the curve on both sides of the halving, and the verdicts."""
    run = next(run for run in store.runs() if run.name == "digits-gd")
    (law,) = [row for row in store.laws(run.id) if row.law == EDGE and row.scope == ""]
    rates = store.observations(run.id, "learning_rate")
    (halved_at,) = [step for step, rate in zip(rates["step"], rates["value"], strict=True) if rate == 0.2]
    curve = store.residuals(run.id, EDGE)
    before = [row for row in zip(curve["step"], curve["ratio"], curve["predicted"], strict=True) if row[0] < halved_at]
    after = [row for row in zip(curve["step"], curve["ratio"], curve["predicted"], strict=True) if row[0] >= halved_at]
    assert {predicted for _, _, predicted in before} == {5.0}
    assert {predicted for _, _, predicted in after} == {10.0}
    assert before[0][1] < 0.9 < before[-1][1]  # it climbed to the first edge ...
    assert after[0][1] < 0.7  # ... and from half way ...
    assert after[-1][1] > 0.95  # ... to the second
    verdicts = [change.verdict for change in law.changes]
    assert verdicts[0] == "sub_edge"
    assert [change.step for change in law.changes if change.verdict == "sub_edge"][-1] == halved_at
    assert verdicts[-1] == "holds"


def test_weights_of_the_transformer_turn_as_adamw_makes_them(demo):
    row = demo.headline(ROTATION, "stdlib-adamw")
    assert row["scope"] == "scale_invariant"
    assert row["predicted"] == pytest.approx((2 * 1e-2 * 1.0 * 0.1 / 1.9) ** 0.5)  # sqrt(2 eta lambda (1-b1)/(1+b1))
    assert row["ratio"] == pytest.approx(1.0, abs=0.3)  # one measurement, not the mean of a window
    assert row["verdict"] in ("holds", "undetermined")


def test_matrices_without_scale_invariance_are_told_apart(demo):
    rows = {row["scope"].removeprefix("network."): row for row in demo.rows(ROTATION, "stdlib-adamw")}
    for name in ("embedding.weight", "head.weight"):
        assert rows[name]["verdict"] == "not_applicable"
        assert "not scale invariant" in rows[name]["reason"]
    assert "not scale invariant" not in rows["blocks.0.attention.query.weight"]["reason"]


def test_the_noise_law_is_judged_and_the_language_model_learns(demo, store):
    assert demo.headline(NOISE, "stdlib-adamw")["verdict"] in ("holds", "undetermined")
    assert demo.headline(NOISE, "stdlib-adamw")["ratio"] == pytest.approx(1.0, abs=0.6)
    run = next(run for run in store.runs() if run.name == "stdlib-adamw")
    losses = [value for value in store.observations(run.id, "loss")["value"] if value is not None]
    assert losses[0] > 4.0
    assert losses[-1] < 2.5


def test_minibatch_training_is_not_measured_against_the_edge(demo):
    row = demo.headline(EDGE, "stdlib-adamw")
    assert row["verdict"] == "not_applicable"
    assert "sampled" in row["reason"]


def test_the_terminal_shows_our_words_only(demo):
    """The address first, one bar per training, the table; no warning and no tip of anyone else's."""
    lines = [line for line in demo.stderr.splitlines() if line.strip()]
    assert lines[0].startswith("live page: http://127.0.0.1:")
    for noise in ("Warning", "Tip", "GPU available", "num_workers", "Traceback"):
        assert noise not in demo.stderr
    assert "Measured against predicted" in demo.stderr


def test_nothing_is_left_behind_but_the_database_and_an_empty_spool(demo):
    assert list(demo.folder.rglob("*.seg")) == []
    assert {path.name for path in demo.folder.iterdir()} <= {"demo.db", "demo.db-wal", "demo.db-shm", ".learnmech"}
