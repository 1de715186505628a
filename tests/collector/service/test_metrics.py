"""`/metrics`: parses, counts right, and names no run."""

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from learnmech import wire
from learnmech.collector.service.readiness import Readiness
from learnmech.collector.store import Unavailable


def scrape(running) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    answer = running.http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = text_string_to_metric_families(answer.text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def test_what_happened_is_counted(running, batch, frame, eventually):
    zero = scrape(running)
    for outcome in ("stored", "duplicate", "heartbeat", "refused", "deferred"):
        assert value(zero, "learnmech_ingest_batches_total", outcome=outcome) == 0, "scraped before it first happens"
    sent = batch([frame(0, wire.Measurement("loss", 1.0), wire.Measurement("nonsense", 2.0)), frame(1)])
    running.post(sent)
    running.post(sent)
    running.post(batch([], heartbeat=True))
    running.post(b"not a batch")
    running.http.get("/v1/runs")
    running.http.get("/v1/runs/0123456789abcdef0123456789abcdef")
    running.http.get("/nowhere")
    samples = scrape(running)
    for outcome, count in {"stored": 1, "duplicate": 1, "heartbeat": 1, "refused": 1, "deferred": 0}.items():
        assert value(samples, "learnmech_ingest_batches_total", outcome=outcome) == count, outcome
    assert value(samples, "learnmech_ingest_measurements_total", outcome="accepted") == 2
    assert value(samples, "learnmech_ingest_measurements_total", outcome="duplicate") == 2
    assert value(samples, "learnmech_ingest_seconds_count") == 3
    assert value(samples, "learnmech_ingest_in_flight") == 0
    assert value(samples, "learnmech_runs", status="running") == 2
    assert value(samples, "learnmech_ready") == 1
    requests = "learnmech_http_requests_total"
    assert value(samples, requests, method="POST", route="/v1/measurements", status="200") == 3
    assert value(samples, requests, method="POST", route="/v1/measurements", status="400") == 1
    assert value(samples, requests, method="GET", route="/v1/runs", status="200") == 1
    assert value(samples, requests, method="GET", route="/v1/runs/{run_id}", status="404") == 1
    assert value(samples, requests, method="GET", route="unmatched", status="404") == 1
    eventually(lambda: value(scrape(running), "learnmech_judge_seconds_count") >= 1)


def test_no_label_grows_with_the_data(shared, batch):
    """A run id as a label would make a new series for every run there ever was."""
    sent = batch()
    shared.post(sent)
    shared.http.get(f"/v1/runs/{sent.run.id}")
    shared.http.request("BREW", "/v1/runs")
    text = shared.http.get("/metrics").text
    assert sent.run.id not in text
    assert not re.search(r"[0-9a-f]{32}", text)
    assert 'method="OTHER"' in text
    assert "BREW" not in text


@pytest.mark.parametrize("name", ["process_resident_memory_bytes", "python_info", "learnmech_build_info"])
def test_the_process_is_described(shared, name):
    assert name in {sample for sample, _ in scrape(shared)}


def test_names_follow_the_conventions(shared):
    for family in text_string_to_metric_families(shared.http.get("/metrics").text):
        if family.name.startswith("learnmech"):
            assert family.documentation.endswith("."), family.name
            assert not re.search(r"(milli|micro)seconds|_ms$|_count$", family.name)
            if family.type == "counter":
                assert all(sample.name.endswith(("_total", "_created")) for sample in family.samples)


def test_a_scrape_succeeds_without_the_database(running, monkeypatch):
    def away(_: object) -> None:
        raise Unavailable("gone")

    monkeypatch.setattr(Readiness, "check", away)
    assert value(scrape(running), "learnmech_ready") == 0
