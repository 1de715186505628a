"""Batches in: stored once, whatever is sent twice, and single bad measurements set aside."""

import gzip
import math

import msgspec
import pytest

from learnmech import wire


@pytest.mark.parametrize("format", ["msgpack", "json"])
def test_a_batch_is_stored_and_read_back(shared, batch, format):
    sent = batch()
    answer = shared.post(sent, format)
    assert answer.status_code == 200
    ack = msgspec.json.decode(answer.content, type=wire.Ack)
    assert (ack.accepted, ack.duplicates, ack.rejected, ack.last_sequence) == (3, 0, [], 2)
    assert shared.values(sent.run.id) == [0.0, 1.0, 2.0]


def test_a_batch_sent_again_changes_nothing(shared, batch):
    sent = batch()
    shared.post(sent)
    before = shared.http.get(f"/v1/runs/{sent.run.id}").json()
    ack = shared.post(sent).json()
    assert (ack["accepted"], ack["duplicates"]) == (0, 3)
    assert shared.http.get(f"/v1/runs/{sent.run.id}").json()["points"] == before["points"] == 3


def test_overlapping_batches_store_only_what_is_new(shared, batch, frame):
    first = batch()
    shared.post(first)
    second = batch([frame(n) for n in range(1, 5)], run=first.run, writer=first.writer)
    ack = shared.post(second).json()
    assert (ack["accepted"], ack["duplicates"], ack["last_sequence"]) == (2, 2, 4)
    assert shared.values(first.run.id) == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_a_gzipped_batch_is_stored(shared, batch):
    sent = batch()
    answer = shared.post(gzip.compress(wire.encode(sent)), **{"Content-Encoding": "gzip"})
    assert answer.json()["accepted"] == 3


def test_a_content_type_with_parameters_is_understood(shared, batch):
    sent = batch()
    answer = shared.post(wire.encode(sent, "json"), **{"Content-Type": "Application/JSON; charset=utf-8"})
    assert answer.json()["accepted"] == 3


def test_an_unknown_observable_is_rejected_and_the_rest_is_stored(shared, batch, frame):
    sent = batch([frame(0, wire.Measurement("loss", 1.0), wire.Measurement("sharpnes", 2.0)), frame(1)])
    answer = shared.post(sent)
    assert answer.status_code == 200
    ack = answer.json()
    assert ack["accepted"] == 2
    (rejection,) = ack["rejected"]
    assert (rejection["sequence"], rejection["index"], rejection["observable"]) == (0, 1, "sharpnes")
    assert "sharpness" in rejection["reason"], "the nearest name is suggested"
    assert shared.values(sent.run.id) == [1.0, 1.0]


def test_a_negative_error_bar_is_rejected_and_the_rest_is_stored(shared, batch, frame):
    sent = batch([frame(0, wire.Measurement("loss", 1.0, stderr=-0.1), wire.Measurement("grad_norm", 2.0))])
    ack = shared.post(sent).json()
    assert (ack["accepted"], [r["observable"] for r in ack["rejected"]]) == (1, ["loss"])


@pytest.mark.parametrize("format", ["msgpack", "json"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_data(shared, batch, frame, format, value):
    sent = batch([frame(0, wire.Measurement("loss", value)), frame(1)])
    assert shared.post(sent, format).json()["accepted"] == 2
    columns = shared.http.get(f"/v1/runs/{sent.run.id}/observations", params={"observable": "loss"}).json()
    assert columns["value"] == [None, 1.0]
    assert columns["status"] == ["non_finite", "ok"]


def test_a_heartbeat_is_acknowledged(shared, batch):
    sent = batch([], heartbeat=True)
    ack = shared.post(sent).json()
    assert (ack["accepted"], ack["last_sequence"]) == (0, -1)


def test_events_are_stored(shared, batch, frame):
    sent = batch([frame(0, events=[wire.Event("run_failed", 0, 1.0, "CUDA out of memory", "error", {"gpu": 3})])])
    shared.post(sent)
    (event,) = shared.http.get(f"/v1/runs/{sent.run.id}/events").json()["events"]
    assert (event["kind"], event["message"], event["severity"]) == ("run_failed", "CUDA out of memory", "error")
    assert shared.http.get(f"/v1/runs/{sent.run.id}").json()["status"] == "failed"


def test_a_name_that_is_html_or_holds_a_nul_stays_a_name(shared, batch, run_info):
    """PostgreSQL cannot hold a NUL and a browser must not run a name; neither may cost a measurement."""
    for name in ("<script>alert(1)</script>", "with\0nul", "naïve — Ω"):
        sent = batch(run=run_info(name))
        assert shared.post(sent).json()["accepted"] == 3
        found = shared.http.get(f"/v1/runs/{sent.run.id}")
        assert found.headers["content-type"] == "application/json"
        assert found.json()["name"] == name.replace("\0", "\N{REPLACEMENT CHARACTER}")


def test_events_are_read_on_from_the_last_one(shared, batch, frame):
    events = [wire.Event("user", n, 1.0, f"number {n}") for n in range(5)]
    sent = batch([frame(0, events=events)])
    shared.post(sent)
    first = shared.http.get(f"/v1/runs/{sent.run.id}/events").json()["events"]
    rest = shared.http.get(f"/v1/runs/{sent.run.id}/events", params={"after": first[2]["id"]}).json()["events"]
    assert [event["message"] for event in rest] == ["number 3", "number 4"]
