"""One batch in: what is stored, what is refused, what the answer says."""

import logging
import math
import re

import pytest

from learnmech.collector.store import UnknownRun, ingest, plan
from learnmech.wire import Event, Measurement, Rejection, Status


def test_what_goes_in_comes_out(store, writer, rows):
    someone = writer()
    frame = someone.frame(
        5,
        Measurement("sharpness", 19.5, stderr=0.25, method="double_backward", cost=0.125),
        Measurement("weight_norm", 3.0, "layer1.weight"),
        Measurement("noise_scale", None, status=Status.UNSUPPORTED, reason="one example per batch"),
        samples=160,
        tokens=40_960,
    )
    ack = store.ingest(someone.batch(frame, sent=990.0), received=1000.5)
    assert (ack.accepted, ack.duplicates, ack.rejected, ack.last_sequence, ack.server_time) == (3, 0, [], 0, 1000.5)
    run = someone.run.id
    assert rows(store, "SELECT * FROM observations ORDER BY observable") == [
        ("run", run, 5, 1005.0, "noise_scale", "", None, None, "unsupported", None),
        ("run", run, 5, 1005.0, "sharpness", "", 19.5, 0.25, "ok", None),
        ("run", run, 5, 1005.0, "weight_norm", "layer1.weight", 3.0, None, "ok", None),
    ]
    assert rows(store, "SELECT * FROM latest ORDER BY observable") == rows(
        store, "SELECT * FROM observations ORDER BY observable"
    )
    assert rows(store, "SELECT * FROM ticks") == [("run", run, 5, 1005.0, 160, 40_960)]
    assert rows(store, "SELECT method, cost, reason, received FROM measurements ORDER BY observable") == [
        (None, None, "one example per batch", 1000.5),
        ("double_backward", 0.125, None, 1000.5),
        (None, None, None, 1000.5),
    ]
    assert [(s.observable, s.scope, s.count, s.value, s.status, s.reason) for s in store.series(run)] == [
        ("noise_scale", "", 1, None, "unsupported", "one example per batch"),
        ("sharpness", "", 1, 19.5, "ok", ""),
        ("weight_norm", "layer1.weight", 1, 3.0, "ok", ""),
    ]


def test_a_batch_that_comes_again_changes_nothing(store, writer, rows):
    someone = writer()
    batch = someone.batch(someone.frame(0, loss=1.0, events=(Event("user", 0, 1.0),)), someone.frame(1, loss=2.0))
    assert store.ingest(batch).accepted == 2
    before = rows(store, "SELECT * FROM measurements"), store.events(batch.run.id)
    again = store.ingest(batch)
    assert (again.accepted, again.duplicates, again.last_sequence) == (0, 2, 1)
    assert (rows(store, "SELECT * FROM measurements"), store.events(batch.run.id)) == before
    assert store.run(batch.run.id).points == 2


def test_the_first_word_on_a_step_counts(store, writer, rows, caplog):
    one = writer()
    two = writer(one.run, rank=1)
    store.ingest(one.batch(one.frame(7, loss=1.0)))
    with caplog.at_level(logging.WARNING):
        ack = store.ingest(two.batch(two.frame(7, loss=2.0, grad_norm=4.0), two.frame(7, grad_norm=5.0)))
    assert (ack.accepted, ack.duplicates) == (1, 2)
    assert rows(store, "SELECT observable, value FROM observations ORDER BY 1") == [("grad_norm", 4.0), ("loss", 1.0)]
    assert rows(store, "SELECT conflicts FROM writer ORDER BY writer_id") == [(0,), (2,)]
    assert "2 measurements that were already recorded" in caplog.text


@pytest.mark.parametrize(
    ("measurement", "sentence"),
    [
        (Measurement("sharpnes", 1.0), r"unknown observable 'sharpnes': did you mean sharpness"),
        (Measurement("user.", 1.0), "unknown observable"),
        (Measurement("loss", 1.0, "a\0b"), "cannot be printed"),
        (Measurement("loss", 1.0, "line\nbreak"), "cannot be printed"),
        (Measurement("loss", 1.0, "x" * 251), "251 characters; expected at most 250"),
        (Measurement("user." + "x" * 250, 1.0), "255 characters"),
        (Measurement("loss", 1.0, stderr=-0.5), r"stderr is -0.5; expected a number that is not negative"),
        (Measurement("loss", 1.0, stderr=-math.inf), "stderr is -inf"),
        (Measurement("loss", None), "status ok without a value"),
        (Measurement("loss", 1.0, cost=math.nan), "cost is nan; expected seconds"),
    ],
)
def test_a_bad_measurement_is_refused_alone(store, writer, rows, measurement, sentence):
    someone = writer()
    batch = someone.batch(
        someone.frame(0, loss=1.0), someone.frame(1, Measurement("grad_norm", 2.0), measurement, loss=3.0)
    )
    first = store.ingest(batch)
    assert (first.accepted, first.duplicates) == (3, 0)
    [rejection] = first.rejected
    assert (rejection.sequence, rejection.index, rejection.observable) == (1, 1, measurement.observable)
    assert re.search(sentence, rejection.reason)
    # The answer may be lost on its way; asked again, the store says the same.
    again = store.ingest(batch)
    assert (again.accepted, again.duplicates, again.rejected) == (0, 3, first.rejected)
    assert len(rows(store, "SELECT * FROM observations")) == 3


def test_too_many_series_are_refused_one_by_one(store, writer, monkeypatch):
    monkeypatch.setattr(plan, "MAX_SERIES", 3)
    monkeypatch.setattr(ingest, "MAX_SERIES", 3)
    someone = writer()
    batch = someone.batch(someone.frame(0, *(Measurement("loss", 1.0, f"step{i}") for i in range(5)), grad_norm=1.0))
    ack = store.ingest(batch)
    assert ack.accepted == 3
    assert [r.index for r in ack.rejected] == [3, 4, 5]
    assert "the run has 3 series already" in ack.rejected[0].reason
    assert store.ingest(batch).rejected == ack.rejected
    assert store.ingest(someone.batch(someone.frame(1, Measurement("loss", 2.0, "step0")))).accepted == 1


def test_numbers_that_are_not_finite_come_back_exactly(store, writer, rows):
    values = [math.nan, math.inf, -math.inf, 5e-324, -5e-324, 1.7976931348623157e308, 0.1]
    someone = writer()
    store.ingest(someone.batch(*(someone.frame(step, loss=value) for step, value in enumerate(values))))
    found = rows(store, "SELECT value, status, nonfinite FROM observations ORDER BY step")
    assert found[:3] == [(None, "non_finite", "nan"), (None, "non_finite", "inf"), (None, "non_finite", "-inf")]
    assert [value.hex() for value, _, _ in found[3:]] == [float(value).hex() for value in values[3:]]
    assert {status for _, status, _ in found[3:]} == {"ok"}
    # Aggregates stay clean: in PostgreSQL one NaN would make every maximum NaN.
    assert rows(store, "SELECT max(value) FROM observations") == [(1.7976931348623157e308,)]


def test_zero_has_no_sign(store, writer):
    """SQLite stores -0.0 as 0: PostgreSQL does the same here, so that both engines give one answer."""
    someone = writer()
    store.ingest(someone.batch(someone.frame(0, loss=-0.0)))
    [value] = store.observations(someone.run.id, "loss")["value"]
    assert math.copysign(1.0, value) == 1.0


def test_a_more_telling_status_is_kept(store, writer, rows):
    someone = writer()
    store.ingest(
        someone.batch(someone.frame(0, Measurement("sharpness", math.nan, status=Status.FAILED, reason="boom")))
    )
    assert rows(store, "SELECT status, nonfinite FROM observations") == [("failed", "nan")]


def test_an_error_bar_that_is_nan_is_infinite_never_absent(store, writer, rows):
    someone = writer()
    store.ingest(someone.batch(someone.frame(0, Measurement("loss", 1.0, stderr=math.nan))))
    assert rows(store, "SELECT stderr FROM observations") == [(math.inf,)]


def test_largest_numbers_and_strangest_texts(store, writer, new_run, rows):
    largest = 2**63 - 1
    run = new_run("Zoë's «run» 🚀 \0 %s {x}", project="p'; DROP TABLE run; --", tags={"a\0": "b\0"}, context={
        "nan": math.nan, "deep": [{"x": -math.inf}], "big": 2**60, "half": "\ud800"})  # fmt: skip
    someone = writer(run)
    someone.sequence = largest
    event = Event("user", largest, 1.0, "NUL \0 in a message", data={"k": [1, None, True, math.inf, "\0"]})
    frame = someone.frame(
        largest, Measurement("user.größe", 1.0, "γ", reason="\0 and \udfff", method="m\0"),
        events=(event,), samples=largest, tokens=largest,
    )  # fmt: skip
    assert store.ingest(someone.batch(frame)).accepted == 1
    assert store.ingest(someone.batch(frame)).duplicates == 1
    row = store.run(run.id)
    assert (row.name, row.project) == ("Zoë's «run» 🚀 � %s {x}", "p'; DROP TABLE run; --")
    assert row.tags == {"a�": "b�"}
    assert row.context == {"nan": "nan", "deep": [{"x": "-inf"}], "big": 2**60, "half": "?"}
    assert row.last_step == largest
    assert rows(store, "SELECT step, observable, scope, tokens, reason FROM measurements") == [
        (largest, "user.größe", "γ", largest, "� and ?")
    ]
    [stored] = store.events(run.id)
    assert (stored.step, stored.message, stored.data) == (
        largest,
        "NUL � in a message",
        {"k": [1, None, True, "inf", "�"]},
    )
    assert store.observations(run.id, "user.größe", "γ", points=1)["step"] == [largest]


def test_tags_can_be_queried_with_one_syntax(store, writer, new_run, rows):
    someone = writer(new_run(tags={"team": "vision"}, context={"optimizer": "SGD"}))
    store.ingest(someone.batch())
    assert rows(store, "SELECT tags ->> 'team', context ->> 'optimizer' FROM runs") == [("vision", "SGD")]


def test_events_and_status(store, writer):
    someone = writer()
    run = someone.run.id
    store.ingest(someone.batch(someone.frame(0, events=(Event("run_started", 0, 100.0, "go"),))), received=100.0)
    row = store.run(run, now=130.0)
    assert (row.status, row.since) == ("running", 100.0)
    row = store.run(run, now=161.0)
    assert (row.status, row.since) == ("stalled", 160.0)
    store.ingest(someone.batch(heartbeat=True), received=162.0)
    row = store.run(run, now=170.0)
    assert (row.status, row.last_seen, row.points) == ("running", 162.0, 0)
    end = someone.frame(9, events=(Event("run_failed", 9, 171.0, "out of memory", "error", {"code": 9}),))
    store.ingest(someone.batch(end), received=172.0)
    row = store.run(run, now=9999.0)
    assert (row.status, row.since, row.last_step) == ("failed", 171.0, 9)
    first, second = store.events(run)
    assert (first.id, first.kind, second.id, second.severity, second.data) == (
        1,
        "run_started",
        2,
        "error",
        {"code": 9},
    )
    assert (second.time, second.received, second.step, second.attempt) == (171.0, 172.0, 9, 0)
    assert store.events(run, after=1) == [second]
    assert store.events(run, after=2) == []


def test_the_last_word_on_a_run_counts_whenever_it_arrives(store, writer):
    someone = writer()
    started = someone.frame(0, events=(Event("run_started", 0, 100.0),))
    finished = someone.frame(9, events=(Event("run_finished", 9, 200.0),))
    store.ingest(someone.batch(finished))
    store.ingest(someone.batch(started))
    assert store.run(someone.run.id).status == "finished"
    resumed = writer(someone.run, attempt=1, start_step=5)
    store.ingest(resumed.batch())
    row = store.run(someone.run.id)
    assert (row.status, row.attempts) == ("running", 2)


def test_the_status_in_sql_is_by_the_servers_clock(store, writer, rows):
    someone, other = writer(), writer()
    store.ingest(someone.batch())
    store.ingest(other.batch(), received=1000.0)
    status = dict(rows(store, "SELECT run_id, status FROM runs"))
    assert status == {someone.run.id: "running", other.run.id: "stalled"}


def test_the_revision_grows_with_every_commit(store, writer):
    assert store.revision() == 0
    one, two = writer(), writer()
    seen = [0]
    for someone in (one, two, one):
        store.ingest(someone.batch(someone.frame(someone.sequence, loss=1.0)))
        seen.append(store.revision())
    assert seen == sorted(set(seen))
    assert store.run(one.run.id).revision > store.run(two.run.id).revision


def test_ranks_complete_the_description_and_the_lowest_counts(store, writer, new_run):
    run = new_run(context={"device": "cuda:1", "rank1": True})
    second = writer(run, rank=1)
    store.ingest(second.batch())
    first = writer(new_run(id=run.id, context={"device": "cuda:0", "dtype": "bf16"}), rank=0)
    store.ingest(first.batch())
    store.ingest(second.batch())
    # Within a rank the first word stays: a batch that was delayed must not take back what a later one said.
    store.ingest(writer(new_run(id=run.id, context={"dtype": "fp32"}), rank=0).batch())
    assert store.run(run.id).context == {"device": "cuda:0", "dtype": "bf16", "rank1": True}


def test_both_clocks_are_kept_and_their_difference(store, writer, rows):
    someone = writer()
    store.ingest(someone.batch(someone.frame(0, loss=1.0, clock=500.0), sent=501.0), received=4101.5)
    store.ingest(someone.batch(someone.frame(1, loss=1.0, clock=502.0), sent=503.0), received=4103.25)
    assert rows(store, "SELECT time, received FROM measurements ORDER BY step") == [(500.0, 4101.5), (502.0, 4103.25)]
    # Least of all delays: an hour of skew, and a quarter of a second on the way.
    assert rows(store, "SELECT clock_offset FROM writer") == [(3600.25,)]


def test_ticks_of_one_step_are_completed(store, writer, rows):
    someone = writer()
    for frame in (
        someone.frame(3, loss=1.0, clock=10.0),
        someone.frame(3, grad_norm=1.0, clock=9.0, samples=64),
        someone.frame(3, sharpness=1.0, clock=11.0, tokens=7),
    ):
        store.ingest(someone.batch(frame))
    assert rows(store, "SELECT step, time, samples, tokens FROM ticks") == [(3, 9.0, 64, 7)]


def test_an_unknown_run_says_so(store):
    with pytest.raises(UnknownRun, match="no run 'abc' in this store; expected the 32 hexadecimal digits"):
        store.run("abc")
    for question in (store.series, store.laws, store.events):
        with pytest.raises(UnknownRun):
            question("abc")


def test_a_deleted_run_starts_anew(store, writer):
    """What the process remembers of a run must not outlive it."""
    someone = writer()
    store.ingest(someone.batch(someone.frame(0, loss=1.0)))
    with store.database.writing() as connection:
        for table in ("run", "attempt", "writer", "ledger", "series", "point", "tick"):
            connection.exec_driver_sql(f"DELETE FROM {table}")
        connection.exec_driver_sql(
            "INSERT INTO run (uuid, project_id, name, created, last_seen, attempt, points, revision, judgements) "
            "VALUES ('x', 1, 'x', 0, 0, 0, 0, 0, 0)"
        )
    assert store.ingest(someone.batch(someone.frame(1, loss=2.0))).accepted == 1
    assert store.observations(someone.run.id, "loss")["value"] == [2.0]


def test_rejections_are_wire_messages(store, writer):
    someone = writer()
    [rejection] = store.ingest(someone.batch(someone.frame(0, nope=1.0))).rejected
    assert isinstance(rejection, Rejection)
