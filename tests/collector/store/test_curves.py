"""Curves: thinned without lying, on any x axis, quick however long the run is."""

import json
import math
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learnmech.collector.store import VIEWS
from learnmech.collector.store.curves import bucket_width
from learnmech.wire import Measurement, Status

LENGTH = 100_000


@pytest.fixture(scope="module")
def long_run(shared_store):
    """A run of 100,000 steps, and 40 other series beside the one of interest; a NaN in the middle."""
    from learnmech.wire import Batch, Frame, RunInfo

    noise = random.Random(0)
    run = RunInfo(f"{noise.getrandbits(128):032x}", "long", 0.0)
    values = [noise.gauss(10.0 * math.exp(-step / 3e4), 0.3) for step in range(LENGTH)]
    values[50_000] = math.nan
    for first in range(0, LENGTH, 10_000):
        frames = [
            Frame(s, s, 1e9 + s, samples=8 * s, measurements=[Measurement("loss", values[s], stderr=0.5)])
            for s in range(first, first + 10_000)
        ]
        shared_store.ingest(Batch(run=run, writer="a" * 32, sent=0.0, frames=frames))
    others = [
        Frame(s, s * 500, 1e9, measurements=[Measurement("weight_norm", 1.0, f"layer{i}") for i in range(40)])
        for s in range(200)
    ]
    shared_store.ingest(Batch(run=run, writer="b" * 32, sent=0.0, frames=others))
    return run.id, values


def test_a_short_series_comes_as_it_is(store, writer):
    someone = writer()
    store.ingest(
        someone.batch(
            someone.frame(0, Measurement("loss", 1.0, stderr=0.5), samples=4),
            someone.frame(10, Measurement("loss", None, status=Status.FAILED), clock=3.5, tokens=9),
        )
    )
    run = someone.run.id
    assert store.observations(run, "loss") == {
        "step": [0, 10], "x": [0, 10], "value": [1.0, None], "lower": [None, None], "upper": [None, None],
        "stderr": [0.5, None], "status": ["ok", "failed"],
    }  # fmt: skip
    assert store.observations(run, "loss", x="samples")["x"] == [4, None]
    assert store.observations(run, "loss", x="tokens")["x"] == [None, 9]
    assert store.observations(run, "loss", x="time")["x"] == [1000.0, 3.5]
    assert store.observations(run, "loss", after_step=0)["step"] == [10]
    assert store.observations(run, "loss", "elsewhere")["step"] == []
    assert set(store.observations(run, "never")) == set(store.observations(run, "loss"))
    assert set(store.residuals(run, "never")) == {
        "step", "x", "time", "measured", "measured_stderr", "predicted", "lower", "upper", "ratio", "verdict", "reason",
    }  # fmt: skip


def test_a_long_series_is_thinned_to_last_and_extremes(shared_store, long_run):
    run, values = long_run
    columns = shared_store.observations(run, "loss", points=1000, x="samples")
    width = bucket_width(0, LENGTH - 1, 1000)
    assert width == 128
    assert len(columns["step"]) == math.ceil(LENGTH / width) <= 1000
    for bucket, step in enumerate(columns["step"]):
        mine = values[bucket * width : (bucket + 1) * width]
        finite = [value for value in mine if math.isfinite(value)]
        assert step == min((bucket + 1) * width, LENGTH) - 1
        assert columns["value"][bucket] == values[step]
        assert (columns["lower"][bucket], columns["upper"][bucket]) == (min(finite), max(finite))
    assert columns["x"] == [8 * step for step in columns["step"]]
    assert set(columns["stderr"]) == {0.5}
    # Extremes of the whole survive any thinning.
    few = shared_store.observations(run, "loss", points=3)
    assert len(few["step"]) <= 3
    assert min(few["lower"]) == min(value for value in values if math.isfinite(value))


def test_the_end_of_a_long_series_comes_in_full(shared_store, long_run):
    run, values = long_run
    columns = shared_store.observations(run, "loss", after_step=LENGTH - 101, points=1000)
    assert columns["value"] == values[-100:]
    assert columns["lower"] == [None] * 100
    around = shared_store.observations(run, "loss", after_step=49_998, points=LENGTH)
    assert (around["value"][1], around["status"][1]) == (None, "non_finite")


@given(st.integers(0, 2**62), st.integers(0, 2**62), st.integers(1, 10_000))
def test_buckets_are_few_enough_and_no_wider_than_needed(a, b, points):
    first, last = sorted((a, b))
    width = bucket_width(first, last, points)
    assert width & (width - 1) == 0
    assert last // width - first // width + 1 <= points
    half = width // 2
    assert not half or last // half - first // half + 1 > points


def test_screens_of_a_long_run_cost_little(shared_store, long_run):
    """CPU of this thread, not wall time, which neighbours share. PostgreSQL is asked for its plans below."""
    run, _ = long_run
    started = time.thread_time()
    shared_store.observations(run, "loss", points=2000, x="time")
    shared_store.series(run)
    shared_store.run(run)
    # Measured 0.12 s; reading a wrong index costs seconds.
    assert time.thread_time() - started < 1.0


QUERIES = {
    "one series": "SELECT step, time, value FROM observations WHERE run_id = :run AND observable = 'loss' "
    "AND scope = '' ORDER BY step",
    "one series by name": "SELECT step, value, stderr FROM observations WHERE run = 'long' AND observable = 'loss'",
    "newest values": "SELECT observable, scope, value FROM latest WHERE run_id = :run",
    "newest values of all runs": "SELECT run, observable, value FROM latest",
    "x axes": "SELECT step, samples FROM ticks WHERE run_id = :run AND step > 99000",
    "residuals": "SELECT step, measured, predicted FROM residuals WHERE run_id = :run AND law = 'edge_of_stability'",
    "runs": "SELECT * FROM runs",
}


@pytest.mark.parametrize("query", QUERIES)
def test_dashboard_queries_use_the_keys(shared_store, long_run, query, rows):
    """No big table is read from end to end, no series is read to find its last point, and no join is quadratic."""
    run, _ = long_run
    if shared_store.database.sqlite:
        plan = [str(row[3]) for row in rows(shared_store, "EXPLAIN QUERY PLAN " + QUERIES[query], run=run)]
        assert not [line for line in plan if line.split()[0] == "SCAN" and line.split()[1] in ("p", "q", "t", "l")]
        assert not [line for line in plan if "(run_id=?)" in line and line.split()[1] in ("p", "q", "l")], plan
        return
    for statistics in (False, True):
        if statistics:
            with shared_store.database.writing() as connection:
                connection.exec_driver_sql("ANALYZE")
        [[plan]] = rows(shared_store, "EXPLAIN (ANALYZE, FORMAT JSON) " + QUERIES[query], run=run)
        nodes = list(flat((json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"]))
        assert not [n for n in nodes if n["Node Type"] == "Seq Scan" and n["Relation Name"] in ("point", "tick")], nodes
        seen = sum(
            node["Actual Loops"] * value
            for node in nodes
            for name, value in node.items()
            if name == "Actual Rows" or name.startswith("Rows Removed")
        )
        assert seen < (2000 if query.startswith("newest") else 6 * LENGTH), nodes
    with shared_store.database.writing() as connection:
        connection.exec_driver_sql("DELETE FROM pg_statistic")


def flat(node):
    yield node
    for child in node.get("Plans", []):
        yield from flat(child)


def test_every_view_can_be_read_for_the_long_run(shared_store, long_run, rows):
    run, _ = long_run
    for view in VIEWS:
        assert len(rows(shared_store, f"SELECT * FROM {view} WHERE run_id = :run LIMIT 3", run=run)) <= 3
