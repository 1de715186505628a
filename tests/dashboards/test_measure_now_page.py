"""The button 'Measure now' in a real browser: there where a run listens, and a click reaches the store."""

import time
import uuid
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import msgspec
import pytest
from playwright.sync_api import expect

from learnmech.wire import Batch, Event, Frame, Measurement, RunInfo

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]


def started(name: str, **context: object) -> Batch:
    """A run that has begun just now."""
    now = time.time()
    frame = Frame(0, 5, now, measurements=[Measurement("loss", 1.0)], events=[Event("run_started", 5, now)])
    run = RunInfo(uuid.uuid4().hex, name, now, context=context)
    return Batch(run=run, writer=uuid.uuid4().hex, sent=now, frames=[frame])


@pytest.fixture(scope="module")
def live(collectors) -> SimpleNamespace:
    """A collector with two runs that run: one listens, one does not."""
    url, store, _ = collectors.start(name="measure-now", token="a-token-of-thirty-two-characters")
    listening, deaf = started("listening", on_demand=True), started("deaf")
    for batch in (listening, deaf):
        store.ingest(batch)
    return SimpleNamespace(url=url, store=store, listening=listening, deaf=deaf)


@pytest.fixture
def beat(live) -> Iterator[Callable[..., object]]:
    """What the training of the run that listens sends next, with its answer."""

    def send(*events: Event) -> object:
        frames = [Frame(1, 6, time.time(), events=list(events))] if events else []
        return live.store.ingest(msgspec.structs.replace(live.listening, frames=frames, heartbeat=not events))

    return send


def test_a_click_asks_the_run_that_listens(live, visit, beat) -> None:
    beat()
    page = visit(f"{live.url}/#run={live.listening.run.id}").page
    page.get_by_label("Token").fill("a-token-of-thirty-two-characters")
    page.get_by_role("button", name="Open").click()
    button = page.get_by_role("button", name="Measure now")
    expect(button).to_be_visible()
    with page.expect_request("**/measure") as sent:
        button.click()
    assert (sent.value.method, sent.value.url) == ("POST", f"{live.url}/v1/runs/{live.listening.run.id}/measure")
    expect(page.locator(".ask .since")).to_have_text("asked; the answer comes with the next measurement")
    expect(button).to_be_enabled()
    button.click()
    expect(page.locator(".ask .since")).to_contain_text("asked already")
    expect(page.locator("#events .event-kind", has_text="measure requested")).to_have_count(1)
    assert beat().asked == 1

    # Another run does not listen, and has no button; nor has a picture of both.
    page.evaluate("hash => { location.hash = hash }", f"run={live.deaf.run.id}")
    expect(page.locator("h1 span[title]")).to_have_text("deaf")
    expect(button).to_be_hidden()
    page.evaluate("hash => { location.hash = hash }", f"run={live.listening.run.id},{live.deaf.run.id}")
    expect(page.locator(".verdicts tbody tr")).to_have_count(2)
    expect(button).to_be_hidden()
    page.evaluate("hash => { location.hash = hash }", f"run={live.listening.run.id}")
    expect(button).to_be_visible()
    expect(page.locator(".ask .since")).to_have_text("")

    # What the collector says when it cannot is shown, and the button is gone with the end of the run.
    busy = {"error": "the database is away", "expected": "", "hint": "retry later"}
    page.route("**/measure", lambda route: route.fulfill(status=503, json=busy))
    button.click()
    expect(page.locator(".ask .since")).to_have_text("the database is away; retry later")
    beat(Event("run_finished", 6, time.time()))
    expect(button).to_be_hidden()
