"""Bad input: each a 4xx in one form, nothing of it stored, nothing of our insides shown."""

import gzip
import socket
import zlib

import msgspec
import pytest

from learnmech import wire

MIB = 1 << 20


def changed(batch: wire.Batch, **fields: object) -> bytes:
    """The batch in MessagePack with fields that the type would not allow."""
    return msgspec.msgpack.encode({**msgspec.to_builtins(batch), **fields})


def measured(batch: wire.Batch, **fields: object) -> bytes:
    """The batch with one measurement of its last frame changed."""
    raw = msgspec.to_builtins(batch)
    raw["frames"][-1]["measurements"][0].update(fields)
    return msgspec.msgpack.encode(raw)


def in_frame(batch: wire.Batch, **fields: object) -> bytes:
    """The batch with its last frame changed."""
    raw = msgspec.to_builtins(batch)
    raw["frames"][-1].update(fields)
    return msgspec.msgpack.encode(raw)


def bomb(size: int) -> bytes:
    """A gzip body that inflates to `size` bytes of zeros."""
    packer = zlib.compressobj(9, wbits=31)
    return b"".join([packer.compress(bytes(MIB)) for _ in range(size // MIB)]) + packer.flush()


def json(_: wire.Batch, text: bytes) -> tuple[bytes, str]:
    return text, "application/json"


CASES = {
    "empty body": (lambda b: b"", 400, "0 bytes"),
    "truncated msgpack": (lambda b: wire.encode(b)[:-7], 400, "cut off"),
    "truncated json": (lambda b: (wire.encode(b, "json")[:-7], "application/json"), 400, "cut off"),
    "json that is no utf-8": (lambda b: (b'{"version": "\xff\xfe"}', "application/json"), 400, "json"),
    "json nested without end": (lambda b: (b"[" * 100_000, "application/json"), 400, "json"),
    "trailing bytes": (lambda b: wire.encode(b) + b"\x00", 400, "msgpack"),
    "msgpack sent as json": (lambda b: (wire.encode(b), "application/json"), 400, "Content-Type"),
    "another message": (lambda b: msgspec.msgpack.encode([1, 2, 3]), 400, "Batch"),
    "another version": (lambda b: changed(b, version=2), 400, "version 2"),
    "a version that is no number": (lambda b: changed(b, version="two"), 400, "version 'two'"),
    "no run": (lambda b: changed(b, run=None), 400, "run"),
    "a run id that is no id": (
        lambda b: changed(b, run={"id": "../../etc/passwd", "name": "x", "created": 0.0}),
        400,
        "run.id",
    ),
    "an empty run name": (lambda b: changed(b, run={"id": "0" * 32, "name": "", "created": 0.0}), 400, "run.name"),
    "a negative attempt": (lambda b: changed(b, attempt=-1), 400, "attempt"),
    "a time that is no number": (lambda b: changed(b, sent=float("nan")), 400, "sent"),
    "a value that is text": (lambda b: measured(b, value="large"), 400, "value"),
    "a value beyond float": (
        lambda b: (wire.encode(b, "json").replace(b'"value":2.0', b'"value":1e999'), "application/json"),
        400,
        "",
    ),
    "an observable that is a number": (lambda b: measured(b, observable=7), 400, "observable"),
    "a name of a thousand letters": (lambda b: measured(b, observable="x" * 1000), 400, "observable"),
    "a status that nobody knows": (lambda b: measured(b, status="fine"), 400, "status"),
    "a negative sequence": (lambda b: in_frame(b, sequence=-1), 400, "sequence"),
    "a sequence that goes back": (lambda b: in_frame(b, sequence=0), 400, "increasing"),
    "a negative step": (lambda b: in_frame(b, step=-1), 400, "step"),
    "a step beyond 64 bits": (lambda b: in_frame(b, step=2**63), 400, "step"),
    "a fractional step": (lambda b: in_frame(b, step=1.5), 400, "step"),
    "no content type": (lambda b: (wire.encode(b), ""), 415, "Content-Type"),
    "a form": (lambda b: (wire.encode(b), "application/x-www-form-urlencoded"), 415, "Content-Type"),
    "text, which a foreign page may post": (lambda b: (wire.encode(b, "json"), "text/plain"), 415, "Content-Type"),
    "an unknown encoding": (lambda b: (wire.encode(b), "application/msgpack", "br"), 415, "br"),
    "gzip that is not": (lambda b: (wire.encode(b), "application/msgpack", "gzip"), 400, "gzip"),
    "gzip cut off": (lambda b: (gzip.compress(wire.encode(b))[:-9], "application/msgpack", "gzip"), 400, "gzip"),
    "gzip with more behind it": (
        lambda b: (gzip.compress(wire.encode(b)) * 2, "application/msgpack", "gzip"),
        400,
        "follow",
    ),
    "a zip bomb": (lambda b: (bomb(64 * MIB), "application/msgpack", "gzip"), 413, "inflates"),
    "a body beyond the limit": (lambda b: wire.encode(b) + bytes(4 * MIB), 413, "bytes"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_whole(shared, batch, case):
    build, status, word = CASES[case]
    good = batch()
    made = build(good)
    body, kind, *encoding = made if isinstance(made, tuple) else (made, "application/msgpack")
    headers = {"Content-Type": kind} if kind else {}
    if encoding:
        headers["Content-Encoding"] = encoding[0]
    answer = shared.http.post("/v1/measurements", content=body, headers=headers)
    assert answer.status_code == status, answer.text
    problem = answer.json()
    assert set(problem) == {"error", "expected", "hint"}
    assert all(problem.values())
    assert word in problem["error"]
    assert "Traceback" not in answer.text
    assert "site-packages" not in answer.text
    assert shared.http.get(f"/v1/runs/{good.run.id}").status_code == 404, "the run exists: something was stored"
    # The same connection, and the writer it came from, go on as if nothing had been.
    assert shared.post(good).json()["accepted"] == 3


def test_a_chunked_body_is_stopped_at_the_limit(shared, batch):
    """Without a Content-Length there is nothing to look at in advance: the limit has to hold while reading."""
    read = 0

    def endless():
        nonlocal read
        for _ in range(64):
            read += MIB
            yield bytes(MIB)

    answer = shared.http.post("/v1/measurements", content=endless(), headers={"Content-Type": "application/msgpack"})
    assert answer.status_code == 413
    assert "4194304 bytes" in answer.json()["error"]


def test_a_declared_length_beyond_the_limit_is_refused_unread(shared):
    """The answer comes although not one byte of the body was sent."""
    with socket.create_connection(("127.0.0.1", shared.service.port), timeout=20) as line:
        line.sendall(
            b"POST /v1/measurements HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/msgpack\r\n"
            b"Content-Length: 99999999\r\n\r\n"
        )
        assert line.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_too_many_measurements_are_refused_whole(store, serve, batch, frame):
    """One transaction of everything would keep all other writers waiting."""
    running = serve(store, measurement_limit=10)
    sent = batch([frame(n) for n in range(11)])
    answer = running.post(sent)
    assert answer.status_code == 413
    assert "11 measurements" in answer.json()["error"]
    assert running.http.get(f"/v1/runs/{sent.run.id}").status_code == 404


def test_a_connection_cut_in_the_middle_of_a_body_stores_nothing(shared, batch, eventually):
    sent = batch()
    body = wire.encode(sent)
    before = _deferred(shared)
    with socket.create_connection(("127.0.0.1", shared.service.port), timeout=20) as line:
        head = (
            "POST /v1/measurements HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/msgpack\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        line.sendall(head.encode() + body[: len(body) // 2])
    eventually(lambda: _deferred(shared) == before + 1)
    assert shared.http.get(f"/v1/runs/{sent.run.id}").status_code == 404
    assert shared.post(sent).json()["accepted"] == 3


def test_a_body_that_never_comes_does_not_hold_its_place(store, serve, batch):
    """408, so that the client comes back; its place in the queue is free again."""
    running = serve(store, body_timeout=0.2, ingest_queue=1)
    with socket.create_connection(("127.0.0.1", running.service.port), timeout=20) as line:
        line.sendall(
            b"POST /v1/measurements HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/msgpack\r\n"
            b"Content-Length: 100\r\n\r\nhalf"
        )
        assert line.recv(4096).startswith(b"HTTP/1.1 408 ")
    assert running.post(batch()).status_code == 200


def test_a_full_queue_says_come_back(store, serve, batch, eventually):
    running = serve(store, ingest_queue=1)
    with socket.create_connection(("127.0.0.1", running.service.port), timeout=20) as line:
        line.sendall(
            b"POST /v1/measurements HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/msgpack\r\n"
            b"Content-Length: 100\r\n\r\nhalf"
        )
        answer = eventually(lambda: (a := running.post(batch())).status_code == 503 and a)
        assert answer.headers["retry-after"] == "1"
        assert set(answer.json()) == {"error", "expected", "hint"}
    assert eventually(lambda: running.post(batch()).status_code == 200)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/nothing", 404),
        ("/v1/runs/0123456789abcdef0123456789abcdef", 404),
        ("/v1/runs/0123456789abcdef0123456789abcdef/observations?observable=loss", 404),
        ("/v1/runs/0123456789abcdef0123456789abcdef/residuals?law=edge_of_stability", 404),
        ("/v1/runs/0123456789abcdef0123456789abcdef/events", 404),
        ("/v1/runs/not-an-id", 422),
        ("/v1/runs/0123456789abcdef0123456789abcdef/observations", 422),
        ("/v1/runs/0123456789abcdef0123456789abcdef/observations?observable=loss&x=hours", 422),
        ("/v1/runs/0123456789abcdef0123456789abcdef/observations?observable=loss&points=1000000000", 422),
        ("/v1/runs/0123456789abcdef0123456789abcdef/observations?observable=loss&after_step=99999999999999999999", 422),
        ("/page/../../../../etc/passwd", 404),
        ("/page/%2e%2e/%2e%2e/etc/passwd", 404),
    ],
)
def test_an_address_that_means_nothing_is_a_sentence(shared, path, status):
    answer = shared.http.get(path)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error", "expected", "hint"}


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("observations?observable=sharpnes", "did you mean sharpness"),
        ("residuals?law=edge_of_stabilty", "did you mean edge_of_stability"),
    ],
)
def test_a_name_that_nobody_declared_is_not_an_empty_curve(shared, batch, query, words):
    good = batch()
    assert shared.post(good).status_code == 200
    answer = shared.http.get(f"/v1/runs/{good.run.id}/{query}")
    assert answer.status_code == 404
    assert words in answer.json()["error"]
    assert shared.http.get(f"/v1/runs/{good.run.id}/residuals?law=edge_of_stability").status_code == 200
    assert shared.http.get(f"/v1/runs/{good.run.id}/observations?observable=hessian_trace").json()["step"] == []


def test_json_with_pythons_nan_says_what_to_write_instead(shared, batch):
    body = wire.encode(batch(), "json").replace(b'"value":2.0', b'"value":NaN')
    answer = shared.http.post("/v1/measurements", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert '"nan"' in answer.json()["hint"]


def test_a_method_that_is_not_allowed_is_a_sentence(shared):
    answer = shared.http.delete("/v1/measurements")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    assert set(answer.json()) == {"error", "expected", "hint"}


def test_what_nobody_expected_is_a_reference_into_the_log(running, batch, monkeypatch, caplog):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(running.store, "ingest", broken)
    answer = running.post(batch())
    assert answer.status_code == 500
    assert "secret detail" not in answer.text
    assert "Traceback" not in answer.text
    reference = answer.json()["error"].split()[2]
    assert any(reference in record.getMessage() and record.exc_info for record in caplog.records)


def _deferred(running) -> int:
    lines = running.http.get("/metrics").text.splitlines()
    (line,) = [line for line in lines if line.startswith('learnmech_ingest_batches_total{outcome="deferred"}')]
    return int(float(line.split()[-1]))
