"""The HTTP sink against a real server on a real socket: what each answer means, and what an outage costs (nothing)."""

import socket
import time

import pytest

from learnmech.probes.delivery import http as http_module
from learnmech.probes.delivery.http import HttpSink
from learnmech.sinks import Refused, SinkError, Unauthorized, Unavailable
from learnmech.wire import Ack, Batch, Frame, Measurement, encode


@pytest.fixture
def deliver(run):
    sinks = []

    def send(url, frames=1, count=1, **settings):
        sinks.append(HttpSink(url))
        batch = Batch(
            run=run,
            writer="f" * 32,
            sent=time.time(),
            frames=[
                Frame(n, n, 1.0, measurements=[Measurement("loss", float(k), scope="s" * 40) for k in range(count)])
                for n in range(frames)
            ],
            **settings,
        )
        return sinks[-1].deliver(batch)

    yield send
    for sink in sinks:
        sink.close()


@pytest.mark.parametrize("kind", ["json", "msgpack"])
def test_a_batch_arrives_and_is_acknowledged(collector, store, deliver, kind):
    collector.format = kind
    ack = deliver(collector.url, frames=3, count=100)
    assert (ack.accepted, ack.last_sequence) == (300, 2)
    assert store.steps == [0, 1, 2]
    ((path, headers, size),) = collector.requests
    assert path == "/v1/measurements"
    assert headers["Content-Type"] == "application/msgpack"
    assert headers["Content-Encoding"] == "gzip"
    assert "Authorization" not in headers
    assert size < 5000


def test_a_small_batch_is_not_compressed(collector, deliver):
    deliver(collector.url)
    assert "Content-Encoding" not in collector.requests[0][1]


def test_a_prefix_in_the_address_is_kept(collector, deliver):
    deliver(collector.url + "/team/a/")
    assert collector.requests[0][0] == "/team/a/v1/measurements"


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda url: url.replace("//", "//lm_secret@"), "lm_secret"),
        (lambda url: url.replace("//", "//anybody:lm_secret@"), "lm_secret"),
        (lambda url: url.replace("//", "//a%2Fb%40c@"), "a/b@c"),
        (lambda url: url, "from the environment"),
    ],
)
def test_the_token_travels_in_the_header(collector, deliver, monkeypatch, make, expected):
    if expected == "from the environment":
        monkeypatch.setenv("LEARNMECH_TOKEN", expected := "lm_env")
    deliver(make(collector.url))
    path, headers, _ = collector.requests[0]
    assert headers["Authorization"] == f"Bearer {expected}"
    assert path == "/v1/measurements"


@pytest.mark.parametrize(
    "url",
    [
        "http://host:8765/?token=s3cr3t",
        "http://host/?access_token=s3cr3t",
        "http://",
        "http:///x",
        "http://s3%20cr3t@h",
    ],
)
def test_an_address_that_cannot_work_is_refused_without_showing_secrets(url):
    with pytest.raises(SinkError) as caught:
        HttpSink(url)
    assert "s3" not in str(caught.value)


ERROR = {"error": "frames[0].step is -1", "expected": "a step of 0 or more", "hint": "count optimizer steps"}


@pytest.mark.parametrize(
    ("status", "content", "headers", "kind", "words"),
    [
        (400, ERROR, {}, Refused, "a step of 0 or more"),
        (422, ERROR, {}, Refused, "count optimizer steps"),
        (415, ERROR, {}, Refused, "step is -1"),
        (409, ERROR, {}, Refused, "step is -1"),
        # The same status from something that is not a collector says nothing about the batch.
        (400, b"<html>Bad Request</html>", {}, Unavailable, "learnmech collector"),
        (400, {"detail": "no"}, {}, Unavailable, "learnmech collector"),
        (404, b"", {}, Unavailable, "learnmech collector"),
        (405, ERROR, {}, Unavailable, "405"),
        (401, {"error": "unknown token"}, {}, Unauthorized, "LEARNMECH_TOKEN"),
        (403, b"", {}, Unauthorized, "LEARNMECH_TOKEN"),
        (429, {"error": "slow down"}, {"Retry-After": "7"}, Unavailable, "slow down"),
        (503, {"error": "the database is away"}, {"Retry-After": "3"}, Unavailable, "database is away"),
        (500, b"Internal Server Error", {}, Unavailable, "500"),
        (502, b"", {"Retry-After": "Wed, 21 Oct 2065 07:28:00 GMT"}, Unavailable, "502"),
        (302, b"", {"Location": "https://login.test/"}, Unavailable, "https://login.test/"),
        (200, b"<html>welcome to the hotel network</html>", {}, Unavailable, "no acknowledgement"),
        (200, b"", {"Content-Type": "application/msgpack"}, Unavailable, "no acknowledgement"),
        (204, b"", {}, Unavailable, "204"),
    ],
)
def test_what_an_answer_means(collector, deliver, status, content, headers, kind, words):
    collector.answer = lambda request, batch: (status, content, headers)
    with pytest.raises((Refused, Unavailable)) as caught:
        deliver(collector.url)
    assert type(caught.value) is kind
    assert words in str(caught.value)
    if isinstance(caught.value, Unavailable):
        asked = headers.get("Retry-After", "")
        assert caught.value.retry_after == (float(asked) if asked.isdigit() else None)
    assert len(collector.requests) == 1  # retries are the courier's business


def test_nobody_listening(deliver):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(Unavailable, match="connection refused"):
        deliver(f"http://127.0.0.1:{port}")


def test_a_server_that_never_answers(deliver, monkeypatch):
    monkeypatch.setattr(http_module, "_PATIENT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(Unavailable, match=r"none within 0\.1 s"):
        deliver(f"http://127.0.0.1:{silent.getsockname()[1]}")


def test_a_server_that_is_slow_for_good_is_waited_for_longer_each_time(collector, store, run, monkeypatch):
    """Its answers take seven times as long as we wait at first: what it has stored is acknowledged in the end, once."""
    monkeypatch.setattr(http_module, "_PATIENT", 0.1)
    slow = collector.answer

    def answer(request, batch):
        time.sleep(0.7)
        return slow(request, batch)

    collector.answer = answer
    sink = HttpSink(collector.url)
    batch = Batch(run=run, writer="f" * 32, sent=time.time(), frames=[Frame(0, 0, 1.0, measurements=[])])
    waited = []
    for _ in range(6):
        try:
            ack = sink.deliver(batch)
            break
        except Unavailable as error:
            waited.append(str(error).rpartition("within ")[2])
    assert waited == ["0.1 s)", "0.2 s)", "0.4 s)"]
    assert ack.last_sequence == 0
    assert sink.deliver(batch).last_sequence == 0, "and from now on at once"
    sink.close()


def test_a_server_that_hangs_up(collector, deliver):
    collector.answer = lambda request, batch: "hang up"
    with pytest.raises(Unavailable, match="no answer from"):
        deliver(collector.url)


def test_a_body_that_is_too_large_is_sent_in_pieces_and_the_size_is_learned(collector, store, run):
    limit = 20_000
    refused = []

    def answer(request, batch):
        if len(encode(batch)) > limit:
            refused.append(len(batch.frames))
            return 413, {"error": "too large"}, {}
        return None

    collector.answer = answer
    sink = HttpSink(collector.url)
    frames = [Frame(n, n, 1.0, measurements=[Measurement("loss", 1.0, scope="s" * 50)] * 20) for n in range(64)]
    batch = Batch(run=run, writer="f" * 32, sent=1.0, frames=frames)
    ack = sink.deliver(batch)
    assert (ack.accepted, ack.duplicates, ack.last_sequence) == (64 * 20, 0, 63)
    assert store.order["f" * 32] == list(range(64))
    first = len(refused)
    assert 1 <= first <= 4
    # The same batch again: nothing is refused on the way, everything is a duplicate.
    ack = sink.deliver(batch)
    assert (ack.accepted, ack.duplicates) == (0, 64 * 20)
    assert len(refused) == first
    sink.close()


def test_one_frame_that_is_too_large_is_refused(collector, deliver):
    collector.answer = lambda request, batch: (413, {"error": "too large"}, {})
    with pytest.raises(Refused, match="one frame"):
        deliver(collector.url)


def test_a_proxy_of_the_environment_is_used(collector, deliver, monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", collector.url)
    deliver("http://collector.test:8765")
    assert collector.requests[0][0] == "http://collector.test:8765/v1/measurements"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    deliver(collector.url)
    assert collector.requests[1][0] == "/v1/measurements"


def test_connections_are_kept(collector, run):
    ports = set()

    def answer(request, batch):
        ports.add(request.client_address[1])

    collector.answer = answer
    sink = HttpSink(collector.url)
    for sequence in range(5):
        sink.deliver(Batch(run=run, writer="f" * 32, sent=1.0, frames=[Frame(sequence, sequence, 1.0)]))
    sink.close()
    assert len(ports) == 1


def test_an_acknowledgement_with_rejections_is_read(collector, deliver):
    collector.store.rejected = lambda batch: []
    ack = Ack(1, 0, [], 0, 5.0)
    collector.answer = lambda request, batch: (200, encode(ack, "json"), {"Content-Type": "application/json"})
    assert deliver(collector.url) == ack
