"""The page's files, and headers that let a browser trust nothing else."""

import re

import pytest

from learnmech.collector.service import page
from learnmech.collector.service.security import HEADERS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A page of our own, so that these tests do not depend on what the real one looks like."""
    root = tmp_path_factory.mktemp("page")
    (root / "parts").mkdir(parents=True)
    (root / "index.html").write_text("<!doctype html><title>page</title>")
    (root / "app.js").write_text("export {};")
    (root / "style.css").write_text("body {}")
    (root / "parts" / "chart.mjs").write_text("export {};")
    (root / "secret.py").write_text("no type, not served")
    return root


@pytest.fixture(scope="module")
def with_page(folder, serve_module):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "find", lambda: page.load(folder))
        return serve_module()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/page/index.html", "text/html; charset=utf-8"),
        ("/page/app.js", "text/javascript; charset=utf-8"),
        ("/page/parts/chart.mjs", "text/javascript; charset=utf-8"),
        ("/page/style.css", "text/css; charset=utf-8"),
    ],
)
def test_files_come_with_their_type(with_page, path, kind):
    answer = with_page.http.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (200, kind)
    head = with_page.http.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == answer.headers["content-length"]


def test_a_file_is_sent_once(with_page):
    first = with_page.http.get("/page/app.js")
    assert first.headers["cache-control"] == "no-cache"
    again = with_page.http.get("/page/app.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    for other in ('"another"', first.headers["etag"][:-2] + '"'):
        assert with_page.http.get("/page/app.js", headers={"If-None-Match": other}).status_code == 200
    for same in (f'"another", {first.headers["etag"]}', f"W/{first.headers['etag']}", "*"):
        assert with_page.http.get("/page/app.js", headers={"If-None-Match": same}).status_code == 304


def test_a_changed_file_has_another_tag(tmp_path):
    (tmp_path / "app.js").write_text("export const changed = false;")
    before = page.load(tmp_path)["app.js"].etag
    (tmp_path / "app.js").write_text("export const changed = true;")
    assert page.load(tmp_path)["app.js"].etag != before


@pytest.mark.parametrize("path", ["/page/secret.py", "/page/", "/page/../conftest.py", "/page//app.js", "/page/parts"])
def test_what_is_no_file_of_the_page_is_not_there(with_page, path):
    assert with_page.http.get(path).status_code == 404


@pytest.mark.parametrize("path", ["/", "/page/app.js", "/v1/runs", "/nowhere", "/metrics", "/docs", "/healthz"])
def test_every_answer_carries_the_security_headers(with_page, path):
    answer = with_page.http.get(path)
    for name, value in HEADERS.items():
        assert answer.headers[name] == value
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert "server" not in answer.headers, "what runs here is nobody's business"


def test_data_is_not_kept_by_browsers(with_page):
    assert with_page.http.get("/v1/runs").headers["cache-control"] == "no-store"


def test_the_page_that_ships_finds_its_files(shared):
    """Everything that the installed page names is there, below the addresses that it names."""
    text = shared.http.get("/").raise_for_status().text
    named = re.findall(r'(?:src|href)="([^"#]+)"', text)
    files = [name for name in named if name.startswith("page/")]
    assert files
    for name in files:
        assert shared.http.get(f"/{name}").status_code == 200, name


def test_without_the_page_the_collector_says_what_to_install(store, serve, monkeypatch):
    monkeypatch.setattr(page, "find", dict)
    answer = serve(store).http.get("/")
    assert answer.status_code == 200
    assert "learnmech[dashboards]" in answer.text


def test_a_page_that_cannot_be_loaded_does_not_stop_the_collector(monkeypatch, caplog):
    class Broken:
        def load(self):
            raise ImportError("no module")

    monkeypatch.setattr(page, "entry_points", lambda **_: [Broken()])
    assert page.find() == {}
    assert "learnmech[dashboards]" in caplog.text


def test_the_documentation_describes_every_route(with_page):
    """It is a page without scripts: the usual one loads its code from elsewhere, which the policy forbids."""
    schema = with_page.http.get("/openapi.json").json()
    text = with_page.http.get("/docs").text
    assert "<script" not in text
    assert "https://" not in text.replace("https://arxiv.org", "")
    for path in schema["paths"]:
        assert path in text
    for expected in (
        "/v1/measurements",
        "/v1/runs/{run_id}/residuals",
        "/v1/stream",
        "/metrics",
        "/healthz",
        "/readyz",
    ):
        assert expected in schema["paths"]


def test_the_schema_holds_the_messages_and_every_reference_resolves(with_page):
    schema = with_page.http.get("/openapi.json").json()
    names = schema["components"]["schemas"]
    assert {"Batch", "Frame", "Measurement", "Event", "RunInfo", "Ack", "Rejection"} <= set(names)
    found = set()

    def walk(item: object) -> None:
        if isinstance(item, dict):
            if isinstance(item.get("$ref"), str):
                found.add(item["$ref"].rpartition("/")[2])
            for value in item.values():
                walk(value)
        elif isinstance(item, list):
            for value in item:
                walk(value)

    walk(schema)
    assert found <= set(names)
    assert "Batch" in found
