"""One token for everything that is data; without one, only this machine."""

import httpx
import pytest

from learnmech import wire
from learnmech.collector.service.auth import host_name
from learnmech.collector.service.settings import Settings, SettingsError, find_token, is_loopback

DATA = [
    "/v1/runs",
    "/v1/laws",
    "/v1/observables",
    "/v1/stream",
    "/metrics",
    "/openapi.json",
    "/v1/runs/x/events",
    "/nothing",
]
OPEN = ["/", "/healthz", "/readyz", "/docs", "/favicon.ico"]


@pytest.fixture(scope="module")
def guarded(serve_module, token):
    return serve_module(token=token)


@pytest.mark.parametrize(
    "header", [None, "Bearer", "Bearer wrong-wrong-wrong-wrong", "Basic dXNlcjpwYXNz", "Bearer \xff\xfe"]
)
def test_data_needs_the_token(guarded, header):
    with httpx.Client(base_url=guarded.service.url, trust_env=False) as client:
        for path in DATA:
            answer = client.get(path, headers=[(b"Authorization", header.encode("latin-1"))] if header else None)
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert set(answer.json()) == {"error", "expected", "hint"}
        for path in OPEN:
            assert client.get(path).status_code < 300, path


def test_a_batch_with_a_wrong_token_is_refused_unread_and_not_stored(guarded, batch):
    sent = batch()
    answer = guarded.post(sent, Authorization="Bearer not-the-right-token-at-all")
    assert answer.status_code == 401
    assert "wrong token" in answer.json()["error"]
    assert guarded.http.get(f"/v1/runs/{sent.run.id}").status_code == 404
    assert guarded.post(sent).json()["accepted"] == 3


def test_a_large_batch_with_a_wrong_token_gets_its_answer(guarded, batch, frame):
    """The answer comes before the body was read, and must not be lost in a connection reset."""
    sent = wire.encode(batch([frame(n, wire.Measurement("loss", 1.0, reason="x" * 15_000)) for n in range(200)]))
    assert len(sent) > 2_000_000
    assert guarded.post(sent, Authorization="Bearer not-the-right-token-at-all").status_code == 401


def test_a_token_twice_is_no_token(guarded, token):
    headers = [("Authorization", f"Bearer {token}"), ("Authorization", "Bearer something-else-altogether")]
    answer = httpx.get(f"{guarded.service.url}/v1/runs", headers=headers, trust_env=False)
    assert answer.status_code == 401


def test_a_token_in_the_address_is_no_token(guarded, token):
    """Addresses end up in logs and histories."""
    answer = httpx.get(f"{guarded.service.url}/v1/runs?token={token}&access_token={token}", trust_env=False)
    assert answer.status_code == 401


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "192.0.2.1", ""])
def test_without_a_token_a_foreign_name_is_refused(shared, host):
    """DNS rebinding: a page of evil.example that resolves to 127.0.0.1 still says evil.example in its Host header."""
    answer = shared.http.get("/v1/runs", headers={"Host": host})
    assert answer.status_code in (400, 403)
    assert "runs" not in answer.text or "error" in answer.json()


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1234", "127.0.0.1:80", "[::1]:8765", "127.1.2.3"])
def test_without_a_token_a_local_name_is_answered(shared, host):
    assert shared.http.get("/v1/runs", headers={"Host": host}).status_code == 200


def test_with_a_token_any_name_is_answered(guarded):
    assert guarded.http.get("/v1/runs", headers={"Host": "collector.example"}).status_code == 200


def test_without_a_token_a_foreign_page_may_not_write(shared, guarded, token):
    """A browser sends what a form of any page says, and its origin with it."""
    path = f"/v1/runs/{'0' * 32}/measure"
    answer = shared.http.post(path, headers={"Origin": "https://evil.example", "Content-Type": "text/plain"})
    assert (answer.status_code, "evil.example" in answer.json()["error"]) == (403, True)
    own = {"Origin": f"http://{shared.http.base_url.netloc.decode()}"}
    assert shared.http.post(path, headers=own).status_code == 404
    assert shared.http.post(path).status_code == 404, "a program"
    assert shared.http.get("/v1/runs", headers={"Origin": "https://evil.example"}).status_code == 200
    bearer = {"Authorization": f"Bearer {token}", "Origin": "https://proxy.example"}
    assert guarded.http.post(path, headers=bearer).status_code == 404, "a proxy may have another name"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "collector.example", ""])
def test_another_address_than_loopback_needs_a_token(host, token):
    with pytest.raises(SettingsError, match="--token-file") as caught:
        Settings(host=host)
    assert "--host 127.0.0.1" in str(caught.value)
    assert Settings(host=host, token=token).token == token


def test_the_token_is_not_in_the_settings_text(token):
    assert token not in repr(Settings(token=token))


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("[::1]", True), ("localhost", True),
     ("localhost.", True),
     ("0.0.0.0", False), ("10.0.0.1", False), ("::", False), ("localhost.example", False), ("", False)],
)  # fmt: skip
def test_what_counts_as_loopback(host, expected):
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [("localhost:8765", "localhost"), ("[::1]:8765", "::1"), ("[::1]", "::1"), ("127.0.0.1", "127.0.0.1"), ("", "")],
)
def test_the_name_in_a_host_header(header, expected):
    assert host_name(header) == expected


def test_the_token_comes_from_a_file(tmp_path, token):
    (tmp_path / "token").write_text(f"{token}\n")
    assert find_token(tmp_path / "token", {}) == token
    assert find_token(None, {"LEARNMECH_TOKEN_FILE": str(tmp_path / "token")}) == token
    assert find_token(tmp_path / "token", {"LEARNMECH_TOKEN": "another-one-that-loses"}) == token


def test_the_token_comes_from_the_environment(token):
    assert find_token(None, {"LEARNMECH_TOKEN": token}) == token
    assert find_token(None, {}) is None
    assert find_token(None, {"LEARNMECH_TOKEN": ""}) is None


def test_a_token_that_protects_nothing_is_refused(tmp_path, token):
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe" * 20)
    for file, environment, words in [
        (tmp_path / "empty", {}, "0 characters"),
        (tmp_path / "missing", {}, "cannot be read"),
        (tmp_path / "binary", {}, "cannot be read"),
        (None, {"LEARNMECH_TOKEN": "changeme"}, "8 characters"),
        (None, {"LEARNMECH_TOKEN": "sixteen letters and a space"}, "Authorization header"),
        (None, {"LEARNMECH_TOKEN": token, "LEARNMECH_TOKEN_FILE": "x"}, "both set"),
    ]:
        with pytest.raises(SettingsError, match=words):
            find_token(file, environment)
